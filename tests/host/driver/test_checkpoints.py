"""Which checkpoint a run goes on from, by verl's own saving and loading: workers that write files, and no Ray."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from fgrpo_plugin.host.driver.checkpoints import TRACKER, Checkpoints, checkpoint_folders, tracked_step
from fgrpo_plugin.host.driver.preference_source import STATE_FILE
from fgrpo_plugin.manifest import MANIFEST, damage, read_manifest

MODEL = "actor/model_world_size_1_rank_0.pt"


class Workers:
    """Stands for the actor: writes the step into files, and reads them."""

    def __init__(self):
        self.loaded, self.fail = None, False

    def save_checkpoint(self, path, remote, step, max_ckpt_to_keep=None):
        Path(path).mkdir(parents=True, exist_ok=True)
        torch.save(torch.full((50,), step), Path(path) / Path(MODEL).name)
        if self.fail:
            raise KeyboardInterrupt
        (Path(path) / "fsdp_config.json").write_text('{"world_size": 1}')

    def load_checkpoint(self, local_path, del_local_after_load):
        self.loaded = int(torch.load(Path(local_path) / Path(MODEL).name)[0])


class Callback:
    """verl's callback of a save: what it finds."""

    found = None

    def on_save(self, trainer, global_step, checkpoint_dir, async_save):
        self.found = (global_step, async_save, (Path(checkpoint_dir) / MANIFEST).exists(), damage(Path(checkpoint_dir)))


@pytest.fixture
def make(tmp_path):
    """A trainer of a run's folder, with verl's own `_save_checkpoint` and `_load_checkpoint` behind ours."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    class Stock:
        _save_checkpoint, _load_checkpoint = PPOTrainer._save_checkpoint, PPOTrainer._load_checkpoint

    class Trainer(Checkpoints, Stock):
        pass

    def made(step=0, *, run=tmp_path / "run", mode="auto", path=None, async_save=False):
        trainer = Trainer()
        trainer.config = OmegaConf.create(
            {
                "trainer": {
                    "default_local_dir": str(run),
                    "resume_mode": mode,
                    "resume_from_path": None if path is None else str(path),
                    "default_hdfs_dir": None,
                    "del_local_ckpt_after_load": False,
                },
                "actor_rollout_ref": {"actor": {"checkpoint": {"async_save": async_save}}},
            }
        )
        OmegaConf.set_struct(trainer.config, True)
        trainer.global_steps, trainer.total_training_steps, trainer.trainer_mode = step, 9, "sync"
        trainer.use_critic, trainer.actor_rollout_wg = False, Workers()
        trainer.train_dataloader = SimpleNamespace(
            state_dict=lambda: {"step": trainer.global_steps},
            load_state_dict=lambda state: setattr(trainer, "data", state["step"]),
        )
        trainer.checkpoint_callback = Callback()
        return trainer

    return made


@pytest.fixture
def run(make, tmp_path):
    """A run's folder with checkpoints of the steps 2, 4 and 6."""
    trainer = make()
    for trainer.global_steps in (2, 4, 6):
        trainer._save_checkpoint()
    return tmp_path / "run"


def resumed(trainer, capsys):
    """The step that was loaded (0: none), and what was said."""
    capsys.readouterr()
    before = OmegaConf.to_container(trainer.config)
    trainer._load_checkpoint()
    assert OmegaConf.to_container(trainer.config) == before  # what was set for verl's loader is set back
    assert (trainer.actor_rollout_wg.loaded or 0) == trainer.global_steps == getattr(trainer, "data", 0)
    return trainer.global_steps, capsys.readouterr().out


def test_a_whole_checkpoint_is_loaded_and_named(make, run, capsys):
    folder = run / "global_step_6"
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert sorted(listed) == ["actor/fsdp_config.json", MODEL, "data.pt", "f_divergence_run.json"]
    step, said = resumed(make(), capsys)
    assert step == 6 and f"fgrpo-plugin: continues from {folder} (step 6)\n" in said and "not loaded" not in said
    step, said = resumed(make(mode="resume_path", path=run / "global_step_4"), capsys)
    assert step == 4 and f"fgrpo-plugin: continues from {run / 'global_step_4'} (step 4)\n" in said
    step, said = resumed(make(mode="disable"), capsys)
    assert step == 0 and "continues" not in said
    step, said = resumed(make(run=run / "none"), capsys)
    assert step == 0 and "fgrpo-plugin" not in said


@pytest.mark.parametrize("file", [MODEL, "actor/fsdp_config.json", "data.pt", "f_divergence_run.json", MANIFEST])
@pytest.mark.parametrize("way", ["cut", "empty", "flipped", "missing", "of step 4"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(make, run, capsys, file, way):
    if (file, way) == ("actor/fsdp_config.json", "of step 4"):
        return  # it is the same at every step
    place = run / "global_step_6" / file
    content = bytearray(place.read_bytes())
    if way == "missing":
        place.unlink()
    elif way == "of step 4":
        place.write_bytes((run / "global_step_4" / file).read_bytes())
    else:
        content[len(content) // 2] ^= 1
        place.write_bytes({"cut": content[:-9], "empty": b"", "flipped": content}[way])
    step, said = resumed(make(), capsys)
    if (file, way) == (MANIFEST, "missing"):  # as one of an earlier version
        assert step == 6 and f"(step 6); it has no {MANIFEST}, so its files are taken as they are\n" in said
        return
    assert step == 4 and f"continues from {run / 'global_step_4'} (step 4)\n" in said
    named = MODEL if way == "of step 4" and file == MANIFEST else file
    assert any(
        line.startswith(f"fgrpo-plugin: {run / 'global_step_6'} is not loaded: ") and named.split("/")[-1] in line
        for line in said.splitlines()
    ), said
    with pytest.raises(ValueError, match=r"^trainer\.resume_from_path=.*/global_step_6 is damaged: ") as caught:
        make(mode="resume_path", path=run / "global_step_6")._load_checkpoint()
    assert "name an earlier checkpoint (global_step_4, global_step_2) (to load it all the same, remove its" in str(
        caught.value
    )


def test_a_slash_at_the_end_of_the_folder_that_is_asked_for_is_none_of_its_name(make, run, capsys):
    """verl by itself reads the step from what stands behind `global_step_`, the slash too."""
    step, said = resumed(make(mode="resume_path", path=f"{run}/global_step_4/"), capsys)
    assert step == 4 and f"continues from {run / 'global_step_4'} (step 4)\n" in said


def test_where_none_is_whole_the_run_is_refused_not_begun_anew(make, run, capsys):
    for step in (2, 4, 6):
        (run / f"global_step_{step}" / MODEL).write_bytes(b"")
    trainer = make()
    with pytest.raises(ValueError, match=r"none of its checkpoints can be loaded, .*trainer\.resume_mode=disable\.$"):
        trainer._load_checkpoint()
    assert trainer.actor_rollout_wg.loaded is None
    assert capsys.readouterr().out.count("is not loaded: actor/model_world_size_1_rank_0.pt has 0 bytes") == 3


def test_a_save_that_was_cut_off_is_never_loaded_even_over_an_older_checkpoint(make, run, capsys):
    for step, before in ((8, 6), (6, 4)):  # a new folder, and one that is written once more
        trainer = make(step)
        trainer.actor_rollout_wg.fail = True
        with pytest.raises(KeyboardInterrupt):
            trainer._save_checkpoint()
        assert tracked_step(run) == 6
        found, said = resumed(make(), capsys)
        assert found == before and ("still being written" in said) is (step == 6)


def test_a_first_save_that_was_cut_off_begins_anew(make, capsys):
    trainer = make(2)
    trainer.actor_rollout_wg.fail = True
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint()
    step, said = resumed(make(), capsys)
    assert step == 0 and "global_step_2 is not loaded: its files were still being written" in said


@pytest.mark.parametrize("tracker", ["7", "", "x", None])
def test_a_tracker_that_leads_nowhere_is_named_and_the_newest_whole_checkpoint_is_used(make, run, capsys, tracker):
    (run / TRACKER).unlink() if tracker is None else (run / TRACKER).write_text(tracker)
    step, said = resumed(make(), capsys)
    assert step == 6
    what = {
        "7": f"{run / 'global_step_7'}, verl's newest checkpoint, is missing",
        None: f"{run / TRACKER}, verl's note",
    }
    assert what.get(tracker, f"{run / TRACKER}, verl's note of its newest checkpoint, is damaged") in said
    if tracker != "7":  # what has no list of its files may never have been finished
        (run / "global_step_6" / MANIFEST).unlink()
        assert resumed(make(), capsys)[0] == 4


def test_a_tracker_alone_begins_anew(make, run, capsys):
    import shutil

    for folder in checkpoint_folders(run).values():
        shutil.rmtree(folder)
    step, said = resumed(make(), capsys)
    assert step == 0 and "global_step_6, verl's newest checkpoint, is missing" in said


def test_a_checkpoint_whose_actor_verl_has_removed_is_passed_over(make, run, capsys):
    import shutil

    (run / "global_step_6" / MODEL).unlink()
    shutil.rmtree(run / "global_step_4" / "actor")
    step, said = resumed(make(), capsys)
    assert step == 2 and f"{run / 'global_step_4'} is not loaded: it holds no actor folder." in said


def test_a_checkpoint_of_another_step_under_this_ones_name_is_not_loaded(make, run, capsys):
    import shutil

    shutil.rmtree(run / "global_step_6")
    shutil.copytree(run / "global_step_4", run / "global_step_6")
    step, said = resumed(make(), capsys)
    assert step == 4 and f"{run / 'global_step_6'} is not loaded: its {MANIFEST} is of step 4." in said


def test_what_a_run_that_took_another_way_has_left_is_not_gone_back_to(make, run, capsys):
    trainer = make(mode="resume_path", path=run / "global_step_2")
    trainer._load_checkpoint()
    for trainer.global_steps in (5, 7):
        trainer._save_checkpoint()
    assert read_manifest(run / "global_step_7") == {"step": 7, "earlier": [2, 5]}
    (run / "global_step_7" / "data.pt").write_bytes(b"")
    assert resumed(make(), capsys)[0] == 5  # not 6
    (run / "global_step_5" / "data.pt").write_bytes(b"")
    assert resumed(make(), capsys)[0] == 2  # not 4
    trainer = make()
    trainer._load_checkpoint()
    trainer.global_steps = 5
    trainer._save_checkpoint()
    assert read_manifest(run / "global_step_5") == {"step": 5, "earlier": [2]}
    assert resumed(make(), capsys)[0] == 5  # verl's tracker says so; the 6 and the 7 are of runs before


@pytest.mark.parametrize(("total", "ends"), [(5, True), (6, True), (7, False)])
def test_a_run_that_has_made_all_of_its_steps_says_that_it_trains_nothing(make, run, capsys, total, ends):
    trainer = make()
    trainer.total_training_steps = total
    step, said = resumed(trainer, capsys)
    assert step == 6
    assert (f"is of step 6 and trainer.total_training_steps is {total}, so that nothing is trained;" in said) is ends


def test_rows_that_another_run_had_drawn_are_not_left_in_a_checkpoint_of_one_that_draws_none(make, tmp_path):
    folder = tmp_path / "run" / "global_step_2"
    trainer = make(2)
    trainer.preferences = SimpleNamespace(save=lambda folder: (folder / STATE_FILE).write_text("{}"))
    trainer._save_checkpoint()
    assert (folder / STATE_FILE).exists()
    make(2, mode="disable")._save_checkpoint()  # f-GRPO, in the same folder
    assert not (folder / STATE_FILE).exists() and damage(folder) is None


def test_a_run_that_saves_holds_its_folder_before_it_looks_for_a_checkpoint(make, run, monkeypatch):
    held = []
    monkeypatch.setattr("fgrpo_plugin.host.driver.checkpoints.hold", lambda folder: held.append(folder))
    for save_freq in (-1, 0, 2):
        trainer = make()
        trainer.config = OmegaConf.merge(OmegaConf.to_container(trainer.config), {"trainer": {"save_freq": save_freq}})
        trainer._load_checkpoint()
    assert held == [run]


def test_the_list_is_there_when_verl_calls_back(make, tmp_path):
    trainer = make(2)
    callback = trainer.checkpoint_callback
    trainer._save_checkpoint()
    assert callback.found == (2, False, True, None) and trainer.checkpoint_callback is callback
    (tmp_path / "run" / TRACKER).read_text()


def test_the_list_is_made_where_verl_has_no_callback(make, run):
    class Older(Checkpoints):
        config, total_training_steps, global_steps = make(8).config, 9, 8

    class Stock:
        def _save_checkpoint(self):
            (self._checkpoint_folder() / "actor").mkdir()

    trainer = type("Trainer", (Older, Stock), {})()
    trainer._save_checkpoint()
    assert damage(run / "global_step_8") is None and read_manifest(run / "global_step_8")["step"] == 8
    assert getattr(trainer, "checkpoint_callback", None) is None


def test_what_verl_writes_asynchronously_is_not_listed_and_taken_as_it_is(make, run, capsys):
    trainer = make(6, async_save=True)
    trainer._save_checkpoint()
    assert trainer.checkpoint_callback.found == (6, True, False, None)
    assert not (run / "global_step_6" / MANIFEST).exists()  # that of the files before would name them
    step, said = resumed(make(), capsys)
    assert step == 6 and f"it has no {MANIFEST}" in said


def test_what_is_no_checkpoints_path_is_verls_to_refuse(make, run):
    with pytest.raises(ValueError, match=r"^trainer\.resume_from_path=.*global_step_9: there is no such folder; name"):
        make(mode="resume_path", path=run / "global_step_9")._load_checkpoint()
    for path in (None, run):
        with pytest.raises(AssertionError, match="resume ckpt must"):
            make(mode="resume_path", path=path)._load_checkpoint()


def test_a_checkpoint_of_another_name_before_its_step_is_read_as_verl_reads_it(make, run, capsys):
    (run / "global_step_4").rename(run / "best_global_step_4")
    trainer = make(mode="resume_path", path=run / "best_global_step_4")
    trainer.preferences = SimpleNamespace(load=lambda folder: setattr(trainer, "folder", folder))
    assert resumed(trainer, capsys)[0] == 4 and trainer.folder == run / "best_global_step_4"
