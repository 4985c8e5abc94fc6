"""A host with the shims' patches trains as the stock verl with the shims does, step for step (CPU)."""

from pathlib import Path

import pytest

from tests.e2e.host_runs import STEPS, F, differences, state, steps
from tests.test_patches import PINNED, SHIMS, check, make_series

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture(scope="module")
def patched_host(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("patched_host")
    check.apply(check.patches_of(PINNED)[:SHIMS], make_series.installed_verl(folder), folder / "patched")
    return folder / "patched"


def shims(run: Path) -> set[str]:
    """What became of them, as the run says itself."""
    (line,) = [line for line in (run / "train.log").read_text().splitlines() if "fgrpo-plugin: shims: " in line]
    return {shim.split(" ", 1)[1] for shim in line.split("shims: ")[1].split(", ")}


def test_training_is_identical_and_no_shim_is_needed(host, uninterrupted, patched_host, figure):
    run = host.finish("patched", verl=patched_host)
    assert f"{patched_host}/verl/" in (run / "train.log").read_text()
    assert shims(uninterrupted) == {"applied"} and shims(run) == {"not needed"}
    assert [step for step, _ in steps(run)] == list(range(1, STEPS + 1))
    largest = differences(uninterrupted, run)
    figure("run, patched", "difference", max(largest.values()))
    figure("run, patched", "actor against vLLM", max(step[F + "rollout_gap"] for _, step in steps(run)))
    assert max(largest.values()) < 1e-4
    assert state(run, STEPS) == state(uninterrupted, STEPS)
