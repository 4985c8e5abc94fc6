"""What a step of the real model costs: all weights or LoRA, padded or packed rows.

    OMP_NUM_THREADS=2 python -m experiments.real_model.modes RUN

RUN is a folder that `fgrpo realmodel` has screened. Each mode trains from the same rows and seed; the first step, which
warms up, does not count. modes.json keeps the figures, and the report of arms.py shows them.
"""

import json
import statistics
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.real_model.arms import HERE, write_report
from experiments.recorded import commit, hardware
from fgrpo_plugin.progress import Lines, progress_bars
from fgrpo_plugin.quickstart.alone import only_run
from fgrpo_plugin.quickstart.summary import read_metrics
from fgrpo_plugin.quickstart.training import interruptible, train
from fgrpo_plugin.realmodel.options import RealModelOptions
from fgrpo_plugin.realmodel.run import verl_command

STEPS = 2
_MODEL = "actor_rollout_ref.model."
FULL = (f"{_MODEL}lora_rank=0",)
PADDED = (f"{_MODEL}use_remove_padding=false", f"{_MODEL}override_config.attn_implementation=sdpa")
PACKED = (f"{_MODEL}use_remove_padding=true", f"{_MODEL}override_config.attn_implementation=cpu_packed")
AGAIN = (f"{_MODEL}enable_gradient_checkpointing=true",)
MODES = {
    "LoRA of rank 32, padded": PADDED,
    "LoRA of rank 32, packed": PACKED,
    "all weights, padded": (*FULL, *PADDED),
    "all weights, packed": (*FULL, *PACKED),
    "all weights, padded, activations recomputed": (*FULL, *PADDED, *AGAIN),
    "all weights, packed, activations recomputed": (*FULL, *PACKED, *AGAIN),
}
"""Name -> what differs from the group `smollm2`."""
TIMES = ("step", "gen", "ref", "update_actor", "update_weights")


def measure(name: str, run: Path, console: Console) -> dict[str, Any]:
    """Train in a mode; seconds of a step and of its parts."""
    measured = commit()  # others may commit while it runs
    folder = run / "modes" / name.replace(",", "").replace(" ", "-")
    options = RealModelOptions(folder=run, steps=STEPS, overrides=(*MODES[name], "trainer.save_freq=-1"))
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    with progress_bars(console) as progress:
        train(
            folder,
            lambda ray: verl_command(folder, options, run / "model", run / "train.parquet", ray),
            STEPS,
            progress,
            Lines(console),
            patience=3600.0,
            threads=2,
        )
    rows = [row["data"] for row in read_metrics(folder / "metrics.jsonl")][1:]
    found = {key: statistics.fmean(row.get(f"timing_s/{key}", 0.0) for row in rows) for key in TIMES}
    found["tokens"] = statistics.fmean(row["perf/total_num_tokens"] for row in rows)
    return found | {"commit": measured, "date": str(date.today()), "hardware": hardware()}


def main(
    run: Annotated[Path, typer.Argument(help="Folder of `fgrpo realmodel`.")],
    only: Annotated[str, typer.Option(help="This mode alone.")] = "",
) -> None:
    """Measure each mode that modes.json does not hold."""
    kept = HERE / "modes.json"
    with only_run() as alone, interruptible():
        if not alone:
            raise SystemExit("another run is under way on this machine; wait for it to end, or stop it.")
        for name in [only] if only else MODES:
            found = json.loads(kept.read_text()) if kept.is_file() else {}
            if only or name not in found:
                found[name] = measure(name, run.absolute(), Console())
                kept.write_text(json.dumps(found, indent=1) + "\n")
                write_report()


if __name__ == "__main__":
    typer.run(main)
