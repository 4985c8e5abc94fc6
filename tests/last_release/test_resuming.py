"""A checkpoint that the last release wrote goes on here: its place in the data, its record, its cache, verl's files."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fgrpo_plugin.host.driver import reference_identity
from tests.last_release.make import FIXTURE, RELEASE
from tests.last_release.write import NEXT, STEPS, made_up, steps, trainer
from tests.support.engine_jobs import difference, dump, job, joined, run_jobs
from tests.support.worker import make_data

SAVED = f"global_step_{STEPS}"
F = "++actor_rollout_ref.actor.policy_loss.f_divergence"


@pytest.fixture
def release(tmp_path) -> Path:
    """A copy, in which a run may write, with the prompts that a configuration wants to see."""
    folder = tmp_path / FIXTURE.name
    make_data(str(shutil.copytree(FIXTURE, folder) / "model"))
    shutil.copy(FIXTURE / "model" / "pairs.jsonl", folder / "model")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(STEPS))  # verl's
    return folder


def test_the_rows_that_the_release_drew_next_are_drawn(release, capsys):
    expected = json.loads((FIXTURE / "next.json").read_text())
    assert len(expected) == NEXT and len({digest for rows in expected for digest in rows}) == 20  # beyond an epoch
    resumed = trainer(release, STEPS)
    resumed._load_checkpoint()
    assert steps(resumed.preferences, NEXT) == expected
    assert "other settings" not in capsys.readouterr().out
    assert steps(trainer(release, STEPS).preferences, NEXT) != expected  # one that has loaded nothing
    on_two = trainer(release, STEPS)
    on_two._load_checkpoint()
    for rows in expected:
        [ranks] = on_two.preferences.draw(1, 2)
        assert sorted(row.digest.hex() for rank in ranks for row in rank) == sorted(rows)


def test_settings_that_are_not_the_checkpoints_are_said(release, capsys):
    record = json.loads((FIXTURE / SAVED / "f_divergence_run.json").read_text())
    assert record["versions"]["fgrpo_plugin"] == RELEASE and record["step"] == STEPS
    resumed = trainer(release, STEPS, f"{F}.beta=0.3", "actor_rollout_ref.actor.optim.lr=5e-6")
    capsys.readouterr()
    resumed._load_checkpoint()
    goes_on, others, kept = capsys.readouterr().out.splitlines()
    assert f"continues from {release / SAVED} (step {STEPS}); it has no " in goes_on
    assert others.endswith("from here on: f_divergence.beta: 0.2 -> 0.3")
    assert kept.endswith("actor.optim.lr: 1e-06 -> 5e-06")


def test_the_reference_log_probs_of_the_release_are_found(release, monkeypatch):
    (key,) = (release / "cache").glob("*/key.json")
    then = json.loads(key.read_text())
    # Another verl or transformers makes another cache, and shall.
    monkeypatch.setattr(reference_identity, "_version", then["versions"].get)
    source, asked = trainer(release, STEPS).preferences, []

    def compute(rows):
        asked.extend(rows)
        return made_up(rows)

    for step in range(1, STEPS + 2):
        [[rows]] = source.draw(1, 1)
        found, hits = source.reference(rows, compute)
        assert hits == (step <= STEPS)
        assert all((mine == theirs).all() for mine, theirs in zip(found, made_up(rows), strict=True))
        assert len(asked) == 4 * step  # of those that were found, to see that they are this reference's
    assert list((release / "cache").glob("*/key.json")) == [key] and json.loads(key.read_text()) == then


def test_verls_worker_goes_on_from_the_parameters_and_the_optimiser_of_the_release(release):
    """The update after the checkpoint is the one that the release made."""
    dump(release, f_hal1=joined(1))
    weights_alone = "actor_rollout_ref.actor.checkpoint.load_contents=[model]"
    saved = {"load": str(release / SAVED / "actor")}
    asked = {"loaded": ([], saved), "weights alone": ([weights_alone], saved), "anew": ([], {})}
    jobs = [
        job(release, name, "f_hal1", "f_hal", *more, optimiser="adamw", **load) for name, (more, load) in asked.items()
    ]
    expected = load_file(FIXTURE / "next.safetensors")
    gaps = {name: difference(expected, rank["parameters"]) for name, (rank,) in run_jobs(jobs, release).items()}
    assert gaps["loaded"] <= 1e-6, gaps
    assert gaps["weights alone"] > 1e-5 and gaps["anew"] > 1e-4, gaps
