"""Run in the tree of an earlier release, by its own code: a small checkpoint of f-HAL, and what that run did next.

    python tests/last_release/write.py FOLDER    # called by make.py, with the release's tree as PYTHONPATH

FOLDER/model: a model, its tokenizer and preference data. FOLDER/global_step_2: what verl's worker and our trainer save
after two steps. FOLDER/cache: reference log-probs of the rows of those steps, a made-up function of their tokens.
FOLDER/next.json: digests of the rows of the steps that follow. FOLDER/next.safetensors: the parameters after the next
update.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

STEPS, NEXT, TOTAL = 2, 12, 20
SETTINGS = ("+actor_rollout_ref.actor.policy_loss.f_divergence.beta=0.2",)


def made_up(rows: list) -> list[torch.Tensor]:
    """In place of a reference worker."""
    return [-torch.tensor(row.response_ids).float() / 100 for row in rows]


def trainer(folder: Path, step: int, *more: str) -> Any:
    """Our trainer in front of one that does nothing, at a step of a run that has the checkpoints of a folder."""
    from transformers import AutoTokenizer

    from fgrpo_plugin.host.driver.preference_source import PreferenceSource
    from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
    from tests.support.worker import config, f_hal

    class Nothing:
        def _load_checkpoint(self) -> None: ...

        def _save_checkpoint(self) -> None: ...

    model = str(folder / "model")
    words = ["+data.preference.batch_size=4", f"+data.preference.cache_dir={folder / 'cache'}", *SETTINGS, *more]
    words += ["data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    words += [f"trainer.default_local_dir={folder}", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
    made = type("Trainer", (FDivergenceTrainer, Nothing), {})()
    made.config = config(model, *f_hal(model), *words)
    made.preferences = PreferenceSource(made.config, AutoTokenizer.from_pretrained(model))
    made.global_steps, made.total_training_steps = step, TOTAL
    return made


def steps(source: Any, count: int) -> list[list[str]]:
    """The digests of the rows of so many steps, whose reference log-probs are asked for."""
    found = []
    for _ in range(count):
        [[rows]] = source.draw(1, 1)
        source.reference(rows, made_up)
        found.append([row.digest.hex() for row in rows])
    return found


def write(folder: Path) -> None:
    from safetensors.torch import save_file

    from tests.support.engine_jobs import job, prepare, run_jobs

    prepare(folder, layers=1, hidden=8)
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(10)]
    (folder / "model" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    saved = folder / f"global_step_{STEPS}"
    asked = job(folder, "next", "f_hal1", "f_hal", optimiser="adamw", checkpoint=str(saved / "actor"))
    ((rank,),) = run_jobs([asked], folder).values()
    save_file({name: value.contiguous() for name, value in rank["updated again"].items()}, folder / "next.safetensors")
    run = trainer(folder, STEPS)
    steps(run.preferences, STEPS)
    run._save_checkpoint()
    kept = folder / "cache"
    shutil.copytree(kept, folder / "kept")  # of the two steps alone
    (folder / "next.json").write_text(json.dumps(steps(run.preferences, NEXT), indent=1) + "\n")
    shutil.rmtree(kept)
    (folder / "kept").rename(kept)
    shutil.rmtree(kept / "tokens")  # it and hashes.json hold where files lay, and are made anew
    for left in (*folder.glob("*.pt"), folder / "log", kept / "hashes.json", folder / "model" / "rows.parquet"):
        left.unlink()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
