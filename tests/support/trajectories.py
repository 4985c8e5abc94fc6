"""Fifty updates on the rows of tests/frozen_rows.safetensors: which runs there are, what is measured of each update.

The weights at the beginning and the vectors that parameters are projected on come from numpy's `RandomState`, whose
stream numpy has frozen, so that no other torch or transformers begins elsewhere.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import PREFIX
from fgrpo_plugin.host.metrics import divide_sums
from tests.same_numbers import LAM, ON_POLICY, ROWS
from tests.support.engine_jobs import dump, job
from tests.support.verl_update import queued
from tests.support.worker import GROUP, make_model

COMMITTED = Path(__file__).parents[1] / "trajectories" / "committed.csv"
UPDATES = 50
PROJECTIONS = 3
VOCABULARY = 264
COLUMNS = (
    "loss",
    "on_policy_loss",
    "preference_loss",
    "grad_norm",
    "divergence_estimate",
    "implicit_reward_margin",
    "preference_implicit_reward_margin",
    "reference_gap",
    "move",
    *(f"projection_{k}" for k in range(PROJECTIONS)),
)
"""Of the policy before an update: the minimised loss, its halves without lambda and scales, the norm of its gradient,
what is logged of its rows. Of the parameters after it: the norm of what they have moved since the beginning, and that
move on fixed random vectors of independent standard normal entries."""
LOGGED = COLUMNS[1:3] + COLUMNS[4:8]
"""Those that verl logs under actor/f_divergence/."""


@dataclass(frozen=True)
class Run:
    """Fifty updates by one loss."""

    loss: str
    preset: str = "stable"
    divergence: str = "pearson"
    optimiser: str = "sgd"

    @property
    def name(self) -> str:
        return f"{self.loss} {self.preset} {self.divergence} {self.optimiser}"

    @property
    def lam(self) -> float:
        return LAM if self.loss == "f_hal" else 0.0

    @property
    def settings(self) -> FDivergenceConfig:
        return FDivergenceConfig(preset=self.preset, divergence=self.divergence)


LOSSES = ("f_grpo", "f_hal")
RUNS = [
    Run(loss, *of)
    for of in (
        ("stable",),
        ("paper",),
        ("released",),
        ("stable", "kl"),
        ("stable", "jensen_shannon"),
        ("stable", "squared_hellinger"),
        ("stable", "pearson", "adam"),
        ("paper", "pearson", "adam"),
        ("released", "pearson", "adam"),
    )
    for loss in LOSSES
]
OPTIMISERS = {
    # run's -> those of `engine_jobs.OPTIMISERS`, by config group
    "sgd": {"cpu": "sgd slow"},
    "adam": {"cpu": "adam fsdp2", "cpu_megatron": "adam megatron"},
}


def engine_optimiser(run: Run, group: str) -> str:
    """Which of `engine_jobs.OPTIMISERS` a run has under a config group."""
    return OPTIMISERS[run.optimiser][group]


def rows(loss: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """On-policy rows and, for f-HAL, preference rows, as `tests.support.independent` takes them, with ref_log_prob."""
    data = load_file(ROWS)
    prompts, responses = data["prompts"].tolist(), data["responses"].tolist()
    tokens = data["tokens"].split([p + n for p, n in zip(prompts, responses, strict=True)])
    old, ref = (data[name].split(responses) for name in ("old_log_prob", "ref_log_prob"))
    found = [
        {
            "prompt": ids[:p].tolist(),
            "response": ids[p:].tolist(),
            "mask": [1] * (len(ids) - p),
            "ref_log_prob": of_reference.tolist(),
            "old_log_prob": of_rollout.tolist(),
        }
        for ids, p, of_rollout, of_reference in zip(tokens, prompts, old, ref, strict=True)
    ]
    for i, row in enumerate(found[:ON_POLICY]):
        row |= {"reward": data["rewards"][i].item(), "group": f"prompt {i // GROUP}"}
    for i, row in enumerate(found[ON_POLICY:]):
        row["desirable"] = i % 2 == 0
    return found[:ON_POLICY], found[ON_POLICY:] if loss == "f_hal" else []


def prepare(folder: Path) -> None:
    """The model of `weights`, and each run's batch for one and two data-parallel ranks, where jobs look for them."""
    from transformers import AutoModelForCausalLM

    model = folder / "model"
    make_model(str(model), layers=2, hidden=32, key_value_heads=2)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert policy.config.vocab_size == VOCABULARY, "the committed trajectories are of another tokenizer's size"
    policy.load_state_dict(weights(dict(policy.named_parameters())))
    policy.save_pretrained(model)
    for run in RUNS:
        dumped = {f"{run.name}{n}": queued(*rows(run.loss), run.settings, run.lam, ranks=n) for n in (1, 2)}
        dump(folder, **dumped)


def weights(like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model begins with, float32: norms near 1, embeddings of standard deviation 1, else of 0.1.

    With embeddings of 0.1 the loss is so curved, since RMSNorm divides by their size, that rounding grows a
    millionfold along the way.
    """
    found = {}
    for name, drawn in _drawn(like, seed=17):
        deviation = 1.0 if "embed" in name else 0.1
        found[name] = (deviation * drawn + (1.0 if "norm" in name else 0.0)).float()
    return found


def where(now: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The columns of the parameters."""
    moves = {name: value.detach().double() - start[name].double() for name, value in now.items()}
    found = {"move": sum(float(move.square().sum()) for move in moves.values()) ** 0.5}
    for k in range(PROJECTIONS):
        vectors = _drawn(moves, seed=100 + k)
        found[f"projection_{k}"] = sum(float((moves[name] * vector).sum()) for name, vector in vectors)
    return found


def _drawn(like: Mapping[str, torch.Tensor], seed: int) -> list[tuple[str, torch.Tensor]]:
    return _drawn_once(tuple((name, tuple(like[name].shape)) for name in sorted(like)), seed)


@cache
def _drawn_once(shapes: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> list[tuple[str, torch.Tensor]]:
    draw = np.random.RandomState(seed)
    return [(name, torch.from_numpy(draw.standard_normal(shape))) for name, shape in shapes]


Trajectory = Sequence[Mapping[str, float]]
"""For each update the columns; those of preference rows are not there in f-GRPO."""


def write(found: Mapping[str, Trajectory], file: Path = COMMITTED) -> None:
    """All trajectories as a table, to twelve digits."""
    with file.open("w", newline="") as opened:
        opened.write(
            "# Fifty updates on tests/frozen_rows.safetensors, a plain loop in float64: tests/support/independent.py.\n"
        )
        opened.write("# Columns: tests/support/trajectories.py. Made by: python -m tests.trajectories.make\n")
        table = csv.DictWriter(opened, ["run", "update", *COLUMNS], lineterminator="\n")
        table.writeheader()
        for name, trajectory in found.items():
            for update, values in enumerate(trajectory, 1):
                table.writerow(
                    {"run": name, "update": update} | {key: f"{value:.12g}" for key, value in values.items()}
                )


def committed(file: Path = COMMITTED) -> dict[str, list[dict[str, float]]]:
    """Every run's trajectory, as `write` wrote it."""
    found: dict[str, list[dict[str, float]]] = {}
    with file.open(newline="") as opened:
        for row in csv.DictReader(line for line in opened if not line.startswith("#")):
            found.setdefault(row["run"], []).append({name: float(row[name]) for name in COLUMNS if row[name]})
    return found


def trajectory_job(
    folder: Path, run: Run, split: str, *more: str, group: str = "cpu", ranks: int = 1, **asked: Any
) -> dict:
    """A job of `engine_jobs` that makes a run's updates, called by run and split.

    Args:
        folder: of `prepare`.
        run: which.
        split: how the work is split.
        more: further overrides.
        group: config group that selects the engine.
        ranks: processes, and ``data_parallel`` of them hold different rows.
        asked: what else `engine_jobs.job` takes.
    """
    section = "+actor_rollout_ref.actor.policy_loss.f_divergence"
    words = [f"{section}.preset={run.preset}", f"{section}.divergence={run.divergence}", *more]
    asked = {"optimiser": OPTIMISERS[run.optimiser][group], "trajectory": UPDATES} | asked
    batch = f"{run.name}{asked.pop('data_parallel', 1)}"
    return job(folder, f"{run.name}, {split}", batch, run.loss, *words, group=group, ranks=ranks, **asked)


def of_engine(reported: Sequence[Mapping[str, float]], run: Run) -> list[dict[str, float]]:
    """The columns of what a rank reported, divided as the driver divides them."""
    found = []
    for values in reported:
        mine = {name: values[name] for name in COLUMNS if name in values}
        if "loss" in mine:  # else a rank of no metrics
            logged = divide_sums(dict(values), run.settings, lam=run.lam, compare_rollout=False)
            mine |= {name: logged[PREFIX + name] for name in LOGGED if PREFIX + name in logged}
        found.append(mine)
    return found


def gaps(found: Trajectory, expected: Trajectory, floor: float) -> dict[str, float]:
    """Column -> largest |found - expected| over the updates, relative to what is expected, at least to its floor.

    Args:
        found: what is compared; it may lack columns, and end earlier.
        expected: the committed numbers.
        floor: share of a column's largest number in the trajectory. Projections are relative to ``move``.
    """
    assert 0 < len(found) <= len(expected) == UPDATES
    worst: dict[str, float] = {}
    for name in found[0]:
        size = "move" if name.startswith("projection") else name
        least = floor * max(abs(values[size]) for values in expected)
        for mine, theirs in zip(found, expected, strict=False):
            gap = abs(mine[name] - theirs[name]) / max(abs(theirs[size]), least)
            worst[name] = max(worst.get(name, 0.0), gap)
    return worst
