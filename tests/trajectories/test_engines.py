"""verl's own worker in float32 follows the committed trajectories, however FSDP2 or Megatron splits the updates.

Fifty updates each, without rollouts, on the CPU. One fixture makes the quick ones, since starting verl costs more.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.engine_jobs import ROWS, run_jobs
from tests.support.trajectories import (
    LOSSES,
    RUNS,
    UPDATES,
    Run,
    committed,
    gaps,
    of_engine,
    prepare,
    trajectory_job,
)

BOUND, FLOOR = 1e-4, 0.1
COMMITTED = committed()
SPLITS = {
    "gradient accumulation": {"micro": 4},
    "dynamic batches": {"micro": 0},
    "two ranks": {"micro": 0, "ranks": 2, "data_parallel": 2},
}
TENSOR_PARALLEL = "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2"
MEGATRON = "Megatron, tensor parallel"
PRESETS = ("stable", "paper", "released")
SEEN_IN = 10
# loss, name -> what its halves are multiplied by, for so many updates
MISTAKES = {
    ("f_grpo", "on-policy half"): {"on_policy": 1.001},
    ("f_hal", "on-policy half"): {"on_policy": 1.001},
    ("f_hal", "preference half"): {"preferences": 1.001},
}
SIMPLE = [Run(loss, preset) for preset in PRESETS for loss in LOSSES]
# f-HAL's updates hold both halves: what else there is of splits takes minutes, and is marked long.
QUICK = [(Run("f_hal"), split) for split in (*SPLITS, MEGATRON)]
LONG = [pair for run in SIMPLE for split in (*SPLITS, MEGATRON) if (pair := (run, split)) not in QUICK]


def _of(run: Run, split: str) -> Run:
    """The run that a split follows: Megatron's by Adam, which is its optimiser."""
    return replace(run, optimiser="adam") if split == MEGATRON else run


def _whole(folder: Path, run: Run) -> dict:
    return trajectory_job(folder, run, "one rank", micro=ROWS[run.loss])


def _job(folder: Path, run: Run, split: str) -> dict:
    if split == MEGATRON:
        return trajectory_job(folder, _of(run, split), split, TENSOR_PARALLEL, group="cpu_megatron", ranks=2)
    return trajectory_job(folder, run, split, **SPLITS[split])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    """name -> what each rank reports."""
    folder = tmp_path_factory.mktemp("trajectories")
    prepare(folder)
    jobs = [_whole(folder, run) for run in SIMPLE]
    for loss, mistake in MISTAKES:
        asked = {"planted": MISTAKES[loss, mistake], "trajectory": SEEN_IN}
        jobs.append(trajectory_job(folder, Run(loss), mistake, micro=ROWS[loss], **asked))
    return run_jobs(jobs + [_job(folder, *pair) for pair in QUICK], folder)


@pytest.fixture(scope="module")
def found_long(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("trajectories_long")
    prepare(folder)
    jobs = [_whole(folder, run) for run in RUNS if run not in SIMPLE]
    return run_jobs(jobs + [_job(folder, *pair) for pair in LONG], folder)


def _worst(ranks: list[dict], run: Run) -> dict[str, float]:
    """The largest gap of each column, over the ranks; a rank without metrics has where its parameters are."""
    expected, worst = COMMITTED[run.name], {}
    for rank in ranks:
        for name, gap in gaps(of_engine(rank["trajectory"], run), expected, FLOOR).items():
            worst[name] = max(worst.get(name, 0.0), gap)
    assert worst.keys() == expected[0].keys()
    return worst


def _check(ranks: list[dict], run: Run, split: str, figure) -> None:
    assert all(len(rank["trajectory"]) == UPDATES for rank in ranks)
    worst = _worst(ranks, run)
    figure(f"trajectory, {split}", run.name, max(worst.values()))
    assert max(worst.values()) <= BOUND, worst


def _name(of: Run | str) -> str:
    return of if isinstance(of, str) else of.name


def _check_whole(found: dict, run: Run, figure) -> None:
    ranks = found[f"{run.name}, one rank"]
    assert [len(part) for part in ranks[0]["micro_batches"]] == [ROWS[run.loss]] * UPDATES
    _check(ranks, run, "one rank", figure)


@pytest.mark.parametrize("run", SIMPLE, ids=_name)
def test_one_rank_follows_the_committed_trajectory(found, run, figure):
    _check_whole(found, run, figure)


@pytest.mark.long
@pytest.mark.parametrize("run", [run for run in RUNS if run not in SIMPLE], ids=_name)
def test_one_rank_follows_the_committed_trajectory_of_another_divergence_or_optimiser(found_long, run, figure):
    _check_whole(found_long, run, figure)


def _check_split(found: dict, run: Run, split: str, figure) -> None:
    ranks = found[f"{_of(run, split).name}, {split}"]
    assert len(ranks) == (2 if split in ("two ranks", MEGATRON) else 1)
    for rank in ranks:
        sizes = [len(part) for part in rank["micro_batches"]]
        assert len(sizes) > UPDATES
        # Uneven, or a mean of micro-batch means would pass, too.
        assert split == "gradient accumulation" or len(set(sizes)) > 1
    _check(ranks, _of(run, split), split, figure)


@pytest.mark.parametrize("run, split", QUICK, ids=_name)
def test_a_split_follows_the_committed_trajectory(found, run, split, figure):
    _check_split(found, run, split, figure)


@pytest.mark.long
@pytest.mark.parametrize("run, split", LONG, ids=_name)
def test_further_splits_follow_the_committed_trajectory(found_long, run, split, figure):
    _check_split(found_long, run, split, figure)


@pytest.mark.parametrize("loss, mistake", MISTAKES)
def test_a_change_of_a_thousandth_in_the_loss_is_seen(found, loss, mistake):
    run = Run(loss)
    worst = _worst(found[f"{run.name}, {mistake}"], run)
    assert min(worst[name] for name in ("loss", "grad_norm", "move")) > 2 * BOUND, worst
