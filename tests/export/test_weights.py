"""FSDP's rank files put together, and what is wrong with them said in one sentence."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from fgrpo_plugin.export.checkpoint import find_checkpoint
from fgrpo_plugin.export.weights import load_model, load_rank_files


def quiet(line: str) -> None:
    """Says nothing."""


def copied(run: Path, to: Path) -> Path:
    """A run's actor folder, to be spoilt."""
    shutil.copytree(run, to)
    return to / "global_step_7" / "actor"


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_rank_file_is_read_without_running_its_code(runs, tmp_path):
    """A checkpoint may come from elsewhere; of a pickle torch reads tensors alone."""
    actor = copied(runs.folder / "full", tmp_path / "run")
    file = actor / "model_world_size_2_rank_0.pt"
    for content, sentence in (({"weight": Runs(tmp_path / "mark")}, "or no checkpoint of verl"), ([], "no weights")):
        torch.save(content, file)
        with pytest.raises(ValueError, match=sentence):
            load_rank_files(find_checkpoint(actor), quiet)
    assert not (tmp_path / "mark").exists()


def test_files_that_name_gpus_are_read_where_there_are_none(runs, tmp_path):
    """As a run on GPUs writes its meshes; that it tags its tensors so is torch's `map_location`."""
    actor = copied(runs.folder / "full", tmp_path / "run")
    expected = load_rank_files(find_checkpoint(actor), quiet)
    for file in actor.glob("model_world_size_*.pt"):
        shard = torch.load(file, weights_only=True)
        for value in shard.values():
            value.device_mesh._device_type = "cuda"
        torch.save(shard, file)
    found = load_rank_files(find_checkpoint(actor), quiet)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_names_that_are_not_wanted_are_not_put_together(runs):
    checkpoint = find_checkpoint(runs.folder / "lora")
    found = load_rank_files(checkpoint, quiet, only=lambda name: "lora_A" in name)
    assert len(found) == 14 and all(value.shape[0] == 4 for value in found.values())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_file_is_named(runs, tmp_path, rank):
    actor = copied(runs.folder / "full", tmp_path / "run")
    (actor / f"model_world_size_2_rank_{rank}.pt").unlink()
    with pytest.raises(ValueError, match=rf"that of rank {rank} is missing; each machine of a run writes its own"):
        load_rank_files(find_checkpoint(actor), quiet)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_file_that_is_cut_off_is_named(runs, tmp_path, rank):
    actor = copied(runs.folder / "full", tmp_path / "run")
    file = actor / f"model_world_size_2_rank_{rank}.pt"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=rf"rank_{rank}.pt is half-written .*choose an earlier step with --step\.$"):
        load_rank_files(find_checkpoint(actor), quiet)


def test_files_of_two_checkpoints_are_not_mixed(runs, tmp_path):
    actor = copied(runs.folder / "full", tmp_path / "run")
    other = runs.folder / "lora" / "global_step_7" / "actor"
    shutil.copy(other / "model_world_size_2_rank_1.pt", actor)
    with pytest.raises(ValueError, match="its rank files name different weights"):
        load_rank_files(find_checkpoint(actor), quiet)


@pytest.mark.long
def test_of_hybrid_sharding_one_replica_is_enough(other_runs, tmp_path):
    actor = copied(other_runs.folder / "hybrid", tmp_path / "run")
    for rank in (2, 3):
        (actor / f"model_world_size_4_rank_{rank}.pt").unlink()
    found = load_rank_files(find_checkpoint(actor), quiet)
    assert all(torch.equal(found[name], value) for name, value in other_runs.found["hybrid"][0]["parameters"].items())
    (actor / "model_world_size_4_rank_1.pt").unlink()
    with pytest.raises(ValueError, match="that of rank 1 is missing"):
        load_rank_files(find_checkpoint(actor), quiet)


def test_a_model_folder_that_lacks_weights_is_refused(runs, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(runs.model, folder)
    weights = load_file(folder / "model.safetensors")
    assert load_model(str(folder), "auto", "--base-model").keys() >= weights.keys()
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"--base-model=.*: its files lack model.norm.weight and 0 more; name a whole"):
        load_model(str(folder), "auto", "--base-model")
