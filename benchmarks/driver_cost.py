"""What the driver does for f-GRPO and f-HAL in a step, as the number of rows grows.

    python -m benchmarks.driver_cost [--sizes 1024,10240,102400 --prompt 256 --response 768 --ranks 64 --repeats 5]

On-policy rows: advantages for verl's stage, and ``row_numbers``. Preference rows, of which there are as many:
drawing and dealing them, their reference log-probs from a warm cache, verl's form, numbers, keys and places.
Without the transfers of verl's queue, which needs a Ray cluster. Each size runs in a fresh process on one thread.
CPU seconds, because other processes may share the cores: the median of the repeats after one that is not counted, and
beside it the fastest, because the kernel's work to find memory among other processes' counts as this one's.

The step that these seconds are a share of is a prediction, not a measurement: 6 N D floating-point operations (N
parameters, D tokens of the same rows) at a stated utilisation, so the update alone. Generation and the reference's pass
make a real step longer, and the share smaller.
"""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

PARAMETERS = 7.6e9  # Qwen2.5-7B
GPUS, PEAK_FLOPS, UTILISATION = 64, 989e12, 0.4  # H100 SXM, bfloat16 without sparsity
TARGET_SHARE, TARGET_EXPONENT = 0.01, 1.1
ON_POLICY = ("advantages", "row_numbers")
TOTALS = ("on-policy rows", "preference rows")


def predicted_step(rows: int, tokens: int) -> float:
    """Seconds of an update on rows of so many tokens, by 6 N D."""
    return 6 * PARAMETERS * rows * tokens / (GPUS * PEAK_FLOPS * UTILISATION)


def on_policy_parts(rows: int, response: int) -> list[tuple[str, Callable[[], Any]]]:
    """The trainer's work on its own rows."""
    import torch
    from tensordict import TensorDict

    from fgrpo_plugin.config import FDivergenceConfig
    from fgrpo_plugin.host.driver.advantage import f_grpo_advantage
    from fgrpo_plugin.host.driver.rows import minibatch_of_row, row_numbers, row_sums
    from tests.support.worker import GROUP, nested

    queue = TensorDict(
        {
            "response_mask": nested(torch.ones(rows, response, dtype=torch.int64)),
            "old_log_probs": nested(-torch.rand(rows, response)),
            "rm_scores": nested(torch.zeros(rows, response).index_fill_(1, torch.tensor([response - 1]), 1.0)),
        },
        batch_size=rows,
    )
    queue["rm_scores"].values()[:: response * 3] = 1.0  # rewards that differ within groups
    uids = np.array([f"prompt {i // GROUP}" for i in range(rows)], dtype=object)
    # verl itself pads what it hands to an estimator.
    scores, mask = (queue[name].to_padded_tensor(0) for name in ("rm_scores", "response_mask"))

    def numbers() -> None:
        row_numbers(
            rewards=row_sums(queue["rm_scores"]).float(),
            uids=uids,
            response_mask=queue["response_mask"],
            old_log_prob=queue["old_log_probs"],
            minibatch=minibatch_of_row(rows, rows, 1),
            padding=torch.zeros(rows, dtype=torch.bool),
            settings=FDivergenceConfig(),
            normalize_by_std=True,
        )

    return [
        ("advantages", lambda: f_grpo_advantage(scores, mask, index=uids)),
        ("row_numbers", numbers),
    ]


def preference_parts(
    folder: str, rows: int, prompt: int, response: int, ranks: int
) -> list[tuple[str, Callable[[], Any]]]:
    """The trainer's work on preference rows, in order."""
    import torch

    from benchmarks.hybrid_cost import MadeRows, make_preferences
    from fgrpo_plugin.host.driver.joining import joined_order, new_keys, preference_numbers, queue_blocks
    from fgrpo_plugin.host.settings.reading import read_settings
    from tests.support.worker import config, f_hal, make_model

    make_model(folder, layers=1, hidden=32, pairs=rows // 2)
    composed = config(folder, *f_hal(folder), f"+data.preference.batch_size={rows}", "data.train_batch_size=1024")
    settings = read_settings(composed.actor_rollout_ref.actor.policy_loss.f_divergence)
    preferences = MadeRows(composed, make_preferences(rows, prompt, response), f"{folder}/cache")
    preferences.reference(preferences.rows, lambda found: list(-torch.rand(len(found), response)))
    held: dict[str, Any] = {}

    def never(missing: Any) -> Any:
        raise AssertionError("the cache is warm")

    def draw() -> None:
        (minibatch,) = preferences.draw(1, ranks)
        held["rows"] = [row for rank in minibatch for row in rank]

    def place() -> None:
        new_keys(rows)
        [{"seq_len": len(row.ids)} for row in held["rows"]]
        joined_order(rows, 1, ranks, rows // ranks)

    def host_form() -> None:
        for _ in queue_blocks(held["rows"], held["reference"], held["numbers"]):
            pass  # the trainer puts each into the queue

    return [
        ("draw and assign to ranks", draw),
        ("reference cache", lambda: held.update(reference=preferences.reference(held["rows"], never)[0])),
        ("numbers", lambda: held.update(numbers=preference_numbers(held["rows"], settings, 0.5))),
        ("verl's form", host_form),
        ("keys and places", place),
    ]


def measure(rows: int, prompt: int, response: int, ranks: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of each part in every repeat, and the peak memory beyond the inputs, in this process."""
    import torch

    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {}  # of each part
    peak: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for total, make in (
            (TOTALS[0], lambda: on_policy_parts(rows, response)),
            (TOTALS[1], lambda: preference_parts(folder, rows, prompt, response, ranks)),
        ):
            parts = make()
            before = _reset_peak()
            for repeat in range(1 + repeats):
                for name, run in parts:
                    start = time.process_time()
                    run()
                    if repeat:
                        seconds.setdefault(name, []).append(time.process_time() - start)
            peak[total] = _peak() - before
            del parts, run
    return {"seconds": seconds, "peak": peak}


def _reset_peak() -> int:
    """Forget the largest resident size so far (Linux); bytes resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of rows; multiples of twice the ranks.")] = "1024,10240,102400",
    prompt: int = 256,
    response: int = 768,
    ranks: int = 64,
    repeats: int = 5,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print seconds, seconds a row, the fitted exponent and the share of a predicted step."""
    counts = [int(size) for size in sizes.split(",")]
    if child:
        print(json.dumps(measure(counts[0], prompt, response, ranks, repeats)))
        return
    shape = [f"--prompt={prompt}", f"--response={response}", f"--ranks={ranks}", f"--repeats={repeats}", "--child"]
    found = {}
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.driver_cost", f"--sizes={count}", *shape]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[count] = json.loads(ran.stdout.splitlines()[-1])
    _report(found, prompt, response, f"{repeats} repeats, {ranks} data-parallel ranks", output)


def exponent(seconds: dict[int, float]) -> float:
    """k of the least-squares fit seconds = c rows^k."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def _report(found: dict[int, dict], prompt: int, response: int, how: str, output: Path | None) -> None:
    largest = max(found)
    parts = list(found[largest]["seconds"])
    taken = {name: {count: np.array(one["seconds"][name]) for count, one in found.items()} for name in parts}
    for total, names in zip(TOTALS, (ON_POLICY, [name for name in parts if name not in ON_POLICY]), strict=True):
        taken[total] = {count: sum(taken[name][count] for name in names) for count in found}
    taken["both, as many rows of each"] = {count: sum(taken[total][count] for total in TOTALS) / 2 for count in found}
    columns = ["work", *(f"{count:,} rows, s" for count in found), "us a row", "fastest", "exponent", "share of a step"]
    title = f"rows of {prompt}+{response} tokens, {how}; {platform.machine()}, {os.cpu_count()} CPU cores, one thread"
    table, lines = Table(title=title), [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for column in columns:
        table.add_column(column)
    verdicts = []
    for name, repeats in taken.items():
        median = {count: float(np.median(values)) for count, values in repeats.items()}
        share = median[largest] / predicted_step(largest, prompt + response)
        growth = exponent(median) if len(median) > 1 else math.nan
        row = [
            name,
            *(f"{value:.4f}" for value in median.values()),
            f"{median[largest] / largest * 1e6:.2f}",
            f"{repeats[largest].min() / largest * 1e6:.2f}",
            f"{growth:.2f}",
            f"{share:.2%}",
        ]
        table.add_row(*row)
        whole = name not in parts
        lines.append(f"| {' | '.join(f'**{cell}**' if whole else cell for cell in row)} |")
        if whole:
            good = share <= TARGET_SHARE and not growth > TARGET_EXPONENT
            verdicts.append(f"{name}: {'met' if good else 'missed'}")
    step = predicted_step(largest, prompt + response)
    memory = ", ".join(f"{name} {value / 2**20:,.0f} MiB" for name, value in found[largest]["peak"].items())
    notes = [
        f"Target: exponent at most {TARGET_EXPONENT}, share at most {TARGET_SHARE:.0%}; " + "; ".join(verdicts) + ".",
        f"Step of {largest:,} rows, predicted: {step:.0f} s (6 N D, N = {PARAMETERS / 1e9:g}e9, {GPUS} GPUs at "
        f"{UTILISATION:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s).",
        f"Peak memory beyond the inputs, {largest:,} rows: {memory}.",
    ]
    Console().print(table, *notes, sep="\n")
    if output is not None:
        output.write_text(
            f"{title[0].upper()}{title[1:]}, {date.today()}:\n\n" + "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
