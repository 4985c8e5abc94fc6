"""Checkpoints that verl's own actor worker saved after an update, by FSDP2, FSDP 1 and Megatron on a CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.engine_jobs import EXPERTS, adapter, job, prepare, run_jobs

MODEL, ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
BF16 = [f"{ACTOR}.fsdp_config.model_dtype=bfloat16"]
RECORD = {
    "versions": {"verl": "0.9.1", "fgrpo_plugin": "0.2.0"},
    "step": 7,
    "total_steps": 10,
    "model": "tiny/model",
    "model_is_local": True,
    "algorithm": "f_grpo",
    "f_divergence": {"preset": "stable", "divergence": "pearson", "beta": 0.1, "gamma": 0.0, "lam": 0.0},
    "actor": {"optim.lr": 1e-3, "ppo_mini_batch_size": 4},
    "data": {"train_batch_size": 4, "train_files": ["gsm8k/train.parquet"]},
    "rollout": {"n": 4},
}
"""As tests/host/settings/test_record.py has the run write it; the worker alone, without the trainer, does not."""


def saved(folder: Path, name: str, *overrides: str, ranks: int = 1, group: str = "cpu", **asked: Any) -> dict:
    """A job whose actor is saved as step 7 of the run `name`."""
    optimiser = "adamw" if group == "cpu" else "adam megatron"
    place = str(folder / name / "global_step_7" / "actor")
    # Megatron's layer norms, biases and heads have the same numbers for one and two data-parallel ranks.
    rows = "f_grpo2" if group == "cpu" and ranks > 1 else "f_grpo1"
    return job(
        folder, name, rows, "f_grpo", *overrides, ranks=ranks, group=group, optimiser=optimiser, save=place, **asked
    )


def make(tmp_path_factory: Any, jobs: Callable[[Path], list[dict]], **settings: Any) -> SimpleNamespace:
    """Run jobs; `folder` holds the model and the runs, `found` what the ranks report."""
    folder = tmp_path_factory.mktemp("export")
    prepare(folder, **settings)
    listed = jobs(folder)
    found = run_jobs(listed, folder)
    for one in listed:
        run = folder / one["name"]
        (run / "global_step_7" / "f_divergence_run.json").write_text(json.dumps(RECORD))
        (run / "latest_checkpointed_iteration.txt").write_text("7")
    return SimpleNamespace(folder=folder, model=folder / "model", found=found)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> SimpleNamespace:
    """Two ranks each: full weights with a tied head, LoRA, and LoRA's adapter alone."""

    def jobs(folder: Path) -> list[dict]:
        lora = adapter(str(folder / "model"), folder / "adapter")
        alone = f"+{ACTOR}.checkpoint.save_lora_only=true"
        return [
            saved(folder, "full", ranks=2),
            saved(folder, "lora", *lora, ranks=2),
            saved(folder, "lora_only", *lora, alone, ranks=2),
        ]

    return make(tmp_path_factory, jobs, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def other_runs(tmp_path_factory) -> SimpleNamespace:
    """An untied head: FSDP 1, one rank, hybrid sharding, bfloat16."""

    def jobs(folder: Path) -> list[dict]:
        lora = adapter(str(folder / "model"), folder / "adapter")
        hybrid = f"{ACTOR}.fsdp_config.fsdp_size=2"
        return [
            saved(folder, "one rank"),
            saved(folder, "FSDP 1, one rank", f"{ACTOR}.strategy=fsdp"),
            saved(folder, "FSDP 1", f"{ACTOR}.strategy=fsdp", ranks=2),
            saved(folder, "LoRA, one rank", *lora),
            saved(folder, "LoRA, bf16", *lora, *BF16),
            saved(folder, "hybrid", hybrid, "data.train_batch_size=4", ranks=4, **{})
            | {"batch": str(folder / "f_grpo1.pt")},
        ]

    return make(tmp_path_factory, jobs)


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> SimpleNamespace:
    """A mixture of experts, whose files name each expert where the model in memory holds them as one."""
    return make(tmp_path_factory, lambda folder: [saved(folder, "full", ranks=2)], **EXPERTS)


@pytest.fixture(scope="session")
def megatron(tmp_path_factory) -> SimpleNamespace:
    """Through the bridge, and as Megatron's own shards, of two ranks each."""
    pytest.importorskip("megatron.core")
    parallel = f"{ACTOR}.megatron"

    def jobs(folder: Path) -> list[dict]:
        tensor = f"{parallel}.tensor_model_parallel_size=2"
        pipeline = f"{parallel}.pipeline_model_parallel_size=2"
        asked: dict[str, Any] = {"ranks": 2, "group": "cpu_megatron"}
        return [
            saved(folder, "bridge", tensor, **asked),
            saved(folder, "shards, tensor", tensor, shards=True, **asked),
            saved(folder, "shards, pipeline", pipeline, shards=True, **asked),
        ]

    # Megatron's checkpoints want each rank's share of a weight to be a multiple of 64 entries.
    return make(tmp_path_factory, jobs, hidden=64)


def log_probs(model: Any, batch: Path) -> list[torch.Tensor]:
    """log p of each row's tokens after its first, nats, by transformers."""
    rows = torch.load(batch, weights_only=False)["input_ids"].unbind()
    with torch.no_grad():
        return [
            torch.log_softmax(model(row[None]).logits[0, :-1].float(), dim=-1).gather(-1, row[1:, None]).squeeze(-1)
            for row in rows
        ]


def worker_log_probs(ranks: list[dict]) -> list[torch.Tensor]:
    """The same of the actor that was saved, by verl's worker; data-parallel ranks hold the rows in turn."""
    return [row for rank in ranks if rank["log_probs, saved"] for row in rank["log_probs, saved"]]


def largest(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    """Largest difference of a token's log-prob."""
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
