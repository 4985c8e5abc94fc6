"""The committed trajectories are those of plain loops in float64: the definitions, and the package's functions."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.float64_loops import by_package, by_single_rows, follow
from tests.support.trajectories import COLUMNS, LOSSES, RUNS, UPDATES, Run, committed, gaps, prepare
from tests.trajectories.make import make

BOUND, FLOOR = 1e-9, 0.01
COMMITTED = committed()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("float64")
    prepare(folder)
    return folder / "model"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_packages_losses_make_the_committed_trajectory(model, run):
    found = follow(model, run, by_package)
    worst = gaps(found, COMMITTED[run.name], FLOOR)
    assert len(found) == UPDATES and {"loss", "on_policy_loss", "grad_norm", "move", "projection_2"} <= worst.keys()
    assert max(worst.values()) <= BOUND, worst


def test_making_the_file_anew_gives_the_committed_numbers(tmp_path):
    make(tmp_path / "again.csv")
    again = committed(tmp_path / "again.csv")
    assert again.keys() == COMMITTED.keys()
    for name, found in again.items():
        worst = gaps(found, COMMITTED[name], FLOOR)
        assert len(found) == UPDATES and worst.keys() == COMMITTED[name][0].keys()
        assert max(worst.values()) <= BOUND, (name, worst)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_definitions_a_response_at_a_time_begin_the_same_way(model, loss):
    """Padded passes are there to save time alone."""
    run = Run(loss)
    assert max(gaps(follow(model, run, by_single_rows, 3), COMMITTED[run.name], FLOOR).values()) <= BOUND


@pytest.mark.parametrize("planted", ["on_policy_factor", "beta_factor"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_change_of_a_thousandth_in_the_loss_is_seen(model, loss, planted):
    """By five orders of magnitude, in the loss as in where the parameters are."""
    run = Run(loss)
    worst = gaps(follow(model, run, partial(by_package, **{planted: 1.001}), 5), COMMITTED[run.name], FLOOR)
    assert min(worst[name] for name in ("loss", "grad_norm", "move")) > 1e4 * BOUND, worst


def test_the_file_holds_every_run_and_all_of_them_move():
    assert list(COMMITTED) == [run.name for run in RUNS]
    for run in RUNS:
        trajectory = COMMITTED[run.name]
        assert len(trajectory) == UPDATES
        absent = set() if run.loss == "f_hal" else {"preference_loss", "preference_implicit_reward_margin"}
        assert set(trajectory[0]) == set(COLUMNS) - absent
        moves = [values["move"] for values in trajectory]
        assert all(later > earlier for earlier, later in pairwise(moves)) and moves[-1] > 1
        assert trajectory[-1]["loss"] < trajectory[UPDATES // 2]["loss"] < trajectory[0]["loss"]
        assert trajectory[-1]["reference_gap"] > 1.5 * trajectory[0]["reference_gap"]


@pytest.mark.parametrize("loss", LOSSES)
def test_released_makes_the_updates_of_paper_where_the_policy_is_the_old_one(loss):
    """By another loss: docs/assumptions.md."""
    paper, released = COMMITTED[Run(loss, "paper").name], COMMITTED[Run(loss, "released").name]
    for one, other in zip(paper, released, strict=True):
        assert other["projection_0"] == pytest.approx(one["projection_0"], rel=BOUND)
        assert abs(other["loss"] - one["loss"]) > 0.1 * abs(one["loss"])
