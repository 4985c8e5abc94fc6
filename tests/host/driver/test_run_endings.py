"""What ends a run in a sentence, through the real driver classes and verl's own save; no Ray runs."""

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayTaskError

from fgrpo_plugin.host.driver import run_endings
from fgrpo_plugin.host.driver.liveness import PartDied
from fgrpo_plugin.host.driver.run_endings import RunEnded, explained
from fgrpo_plugin.host.replay_rows import MEGATRONS_CHECK, NonFiniteUpdate, unpack
from fgrpo_plugin.replay.recompute import recompute
from tests.replay.test_recompute import saved_by


def in_a_worker(error):
    """As the driver gets what a worker has raised."""
    return RayTaskError("WorkerDict.actor_update_actor", "Traceback: ...", error).as_instanceof_cause()


@pytest.fixture
def make(stock_config, inputs, tmp_path):
    """A trainer of verl's synchronous mode, whose `fit` does this alone."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
    from fgrpo_plugin.host.settings.switch import complete

    def made(body, *overrides):
        class Stock(PPOTrainerSync):
            def __init__(self):
                self.config = config

            def fit(self, agent_loop_manager):
                body(self)

        config = stock_config(
            *inputs, "algorithm.adv_estimator=f_grpo", f"trainer.default_local_dir={tmp_path / 'run'}", *overrides
        )
        complete(config)
        trainer = type("Trainer", (FDivergenceTrainer, Stock), {})()
        trainer.actor_rollout_wg = SimpleNamespace(workers=())
        trainer.global_steps, trainer.total_training_steps, trainer.use_critic = 8, 9, False
        trainer.trainer_mode, trainer.train_dataloader = "sync", SimpleNamespace(state_dict=dict)
        return trainer

    return made


@pytest.fixture
def run(tmp_path):
    """A run's folder with the checkpoint of step 4."""
    folder = tmp_path / "run"
    (folder / "global_step_4" / "actor").mkdir(parents=True)
    (folder / "global_step_4" / "actor" / "model.pt").write_text("whole")
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


def ended(trainer, capsys):
    """The sentence with which a run ends, which is printed as well."""
    with pytest.raises(RunEnded) as error:
        trainer.fit(None)
    assert f"fgrpo-plugin: {error.value}\n" in capsys.readouterr().err
    return str(error.value)


def _save_to(file):
    """A worker's save, of which one file goes to a full disk."""

    def save(folder, *given, **more):
        target = Path(folder) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to("/dev/full")
        try:
            torch.save({"weight": torch.zeros(100000)}, target)
        except RuntimeError as error:
            raise in_a_worker(error) from None

    return save


def _full_dataloader(folder, *given, **more):
    (Path(folder).parent / "data.pt").symlink_to("/dev/full")


@pytest.mark.parametrize("place", ["worker", "dataloader", "own record"])
def test_a_full_disk_while_saving_leaves_the_checkpoint_before_and_names_the_folder(
    make, run, capsys, monkeypatch, place
):
    trainer = make(lambda trainer: trainer._save_checkpoint())
    saves = {"worker": _save_to("model.pt"), "dataloader": _full_dataloader, "own record": None}
    trainer.actor_rollout_wg.save_checkpoint = saves[place]
    if place == "own record":

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("fgrpo_plugin.folders.os.fsync", full)
    sentence = ended(trainer, capsys)
    assert sentence.startswith(f"the checkpoint of step 8 could not be saved to {run}: ")
    reasons = {"own record": "no space is left on the disk ([Errno 28] No space left on device)"}
    assert reasons.get(place, "a file could not be written whole, as on a full disk or quota (") in sentence
    assert "GiB are free there now. global_step_8 in it is half-written" in sentence
    assert sentence.endswith("The same command then goes on from global_step_4.")
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "4"
    assert (run / "global_step_4" / "actor" / "model.pt").read_text() == "whole"


def _refusing(error):
    def refuse(*given, **more):
        raise in_a_worker(error)

    return refuse


def test_another_error_while_saving_is_called_an_error(make, run, capsys):
    trainer = make(lambda trainer: trainer._save_checkpoint())
    trainer.actor_rollout_wg.save_checkpoint = _refusing(OSError(errno.EIO, "Input/output error"))
    sentence = ended(trainer, capsys)
    assert f"could not be saved to {run}: an error ([Errno 5] Input/output error), " in sentence
    assert "global_step_8 in it is half-written" in sentence and "free space" not in sentence


def test_a_folder_that_cannot_be_written_to_is_not_called_full(make, run, capsys):
    trainer = make(lambda trainer: trainer._save_checkpoint())
    trainer.actor_rollout_wg.save_checkpoint = _refusing(PermissionError(13, "Permission denied"))
    closed = f"could not be saved to {run}: it cannot be written to ([Errno 13] Permission denied). "
    sentence = ended(trainer, capsys)
    assert closed + "global_step_8 in it is half-written, and what was saved before is as it was; make it" in sentence
    assert "GiB" not in sentence and "free space" not in sentence


def test_what_could_not_be_begun_is_not_called_half_written(make, run, capsys, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", _refusing(OSError(errno.EROFS, "Read-only file system")))
    sentence = ended(make(lambda trainer: trainer._save_checkpoint()), capsys)
    assert "it cannot be written to ([Errno 30] Read-only file system). What was saved before is as it" in sentence
    assert "half-written" not in sentence


@pytest.mark.parametrize(
    ("given", "tracker", "end"),
    [
        (("resume_mode=auto",), b"4", "The same command then goes on from global_step_4."),
        (("resume_mode=auto",), b"\xff\x00", "There is no earlier checkpoint, so that the run then begins anew."),
        (
            ("resume_mode=disable",),
            b"4",
            "The same command then begins anew, as trainer.resume_mode=disable says; with trainer.resume_mode=auto it "
            "goes on from global_step_4.",
        ),
        (
            ("resume_mode=resume_path", "resume_from_path=/x/global_step_2"),
            b"4",
            "goes on from /x/global_step_2 once more; with trainer.resume_mode=auto it goes on from global_step_4.",
        ),
        (
            ("resume_mode=resume_path", "resume_from_path=/x/global_step_2"),
            None,
            "goes on from /x/global_step_2 once more.",
        ),
    ],
)
def test_what_the_same_command_then_does_is_as_its_settings_have_it(make, run, capsys, given, tracker, end):
    def short(trainer):
        raise MemoryError

    trainer = make(short, *(f"trainer.{setting}" for setting in given))
    (run / "latest_checkpointed_iteration.txt").unlink()
    if tracker is not None:
        (run / "latest_checkpointed_iteration.txt").write_bytes(tracker)
    assert ended(trainer, capsys).endswith(end.format(run=run))


def test_a_full_disk_elsewhere_is_said_too(make, capsys):
    def full(trainer):
        raise in_a_worker(OSError(errno.EDQUOT, "Disk quota exceeded"))

    assert ended(make(full), capsys).startswith("step 8: no space is left on a disk ([Errno 122] Disk quota exceeded);")


@pytest.mark.parametrize(
    ("dynamic", "size"), [("true", "ppo_max_token_len_per_gpu"), ("false", "ppo_micro_batch_size_per_gpu")]
)
def test_too_little_memory_in_the_update_names_the_size_of_its_micro_batches(make, run, capsys, dynamic, size):
    def _update_actor():
        raise in_a_worker(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))

    given = (
        f"actor_rollout_ref.actor.use_dynamic_bsz={dynamic}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    )
    given += tuple(f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu=8" for part in ("ref", "rollout"))
    trainer = make(lambda trainer: _update_actor(), *given)
    now = trainer.config.actor_rollout_ref.actor[size]
    sentence = ended(trainer, capsys)
    assert sentence.startswith(
        "step 8: out of memory in _update_actor (CUDA out of memory. Tried to allocate 20.00 GiB)"
    )
    assert f"; nothing of this step is saved; lower actor_rollout_ref.actor.{size} (now {now})" in sentence
    assert sentence.endswith("goes on from global_step_4.")


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("_compute_ref_log_prob", "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"),
        ("_compute_old_log_prob", "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"),
        ("_policy_log_probs", "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"),
    ],
)
def test_the_innermost_pass_is_the_one_that_is_named(make, capsys, method, setting):
    def fail():
        raise in_a_worker(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))

    namespace = {"fail": fail}
    exec(f"def {method}():\n    fail()\ndef _update_actor():\n    {method}()", namespace)
    given = [f"actor_rollout_ref.{part}.log_prob_use_dynamic_bsz=true" for part in ("ref", "rollout")]
    sentence = ended(make(lambda trainer: namespace["_update_actor"](), *given), capsys)
    assert f"out of memory in {method} (" in sentence and f"lower {setting} (now " in sentence
    assert sentence.endswith("There is no earlier checkpoint, so that the run then begins anew.")


def test_it_is_so_too_where_the_driver_has_wrapped_the_error(make, capsys):
    def _compute_ref_log_prob():
        raise in_a_worker(torch.OutOfMemoryError("CUDA out of memory."))

    def _update_actor():
        try:
            _compute_ref_log_prob()
        except RuntimeError as error:
            raise RuntimeError("the update failed") from error

    assert "out of memory in _compute_ref_log_prob (" in ended(make(lambda trainer: _update_actor()), capsys)


def test_memory_that_is_short_elsewhere_is_said_without_a_setting(make, capsys):
    def fail(trainer):
        raise MemoryError

    assert "out of memory (MemoryError); nothing of this step is saved; `fgrpo plan`" in ended(make(fail), capsys)


def test_an_update_that_was_not_finite_leaves_a_file_that_reproduces_it(make, run, capsys):
    saved = saved_by(spoil=lambda given: given["ref_log_prob"].__setitem__((1, 2), float("nan")))[1]
    error = NonFiniteUpdate("the loss of a mini-batch cannot be computed: it is NaN.", saved.rows, saved.about)

    def fail(trainer):
        raise in_a_worker(pickle.loads(pickle.dumps(error)))

    sentence = ended(make(fail), capsys)
    file = run / "failed" / "step_8_rank_3.safetensors"
    assert sentence.startswith(
        "step 8: the loss of a mini-batch cannot be computed: it is NaN. Nothing of it is applied"
    )
    assert f"; `fgrpo replay {file}` computes it again" in sentence and sentence.endswith("from global_step_4.")
    kept = unpack(file)
    assert kept.about["step"] == 8 and kept.about["rank"] == 3
    assert [row.reason for row in recompute(kept)] == ["", "log pi_ref = nan at token 2", "", ""]


def test_without_room_for_the_file_the_sentence_still_comes(make, capsys, monkeypatch):
    saved = saved_by()[1]

    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_endings, "write_whole", full)

    def fail(trainer):
        raise in_a_worker(NonFiniteUpdate("it is NaN.", saved.rows, saved.about))

    assert "and its rows could not be written to " in ended(make(fail), capsys)


def test_megatrons_own_check_of_a_stage_without_rows_is_the_same_ending(make, capsys):
    def fail(trainer):
        raise in_a_worker(RuntimeError(f"Unexpected result nan (message='found NaN {MEGATRONS_CHECK} #0')"))

    assert ended(make(fail), capsys).startswith(
        "step 8: the gradient of a mini-batch is not finite (Unexpected result nan"
    )


def test_an_unknown_error_stays_what_it_is(make):
    def fail(trainer):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        make(fail).fit(None)


def test_a_dead_part_that_is_met_before_a_save_is_no_failed_save():
    def _save_checkpoint():
        raise PartDied("rollout server 0 has died")

    with pytest.raises(PartDied) as raised:
        _save_checkpoint()
    assert explained(raised.value, None, 3) is None
