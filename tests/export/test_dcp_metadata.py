"""An index of a distributed checkpoint is read, and what it would run is not run."""

import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from fgrpo_plugin.export.dcp_metadata import PlainReader


class Runs:
    """What unpickles to a call."""

    def __init__(self, call, *words):
        self.made = (call, words)

    def __reduce__(self):
        return self.made


@pytest.fixture
def saved(tmp_path):
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": {"d": [1, "x"]}}
    dcp.save(state, checkpoint_id=tmp_path / "whole", no_dist=True)
    return tmp_path / "whole", state


def test_torchs_own_index_is_read_and_its_weights_are_the_same(saved):
    folder, state = saved
    ours, torchs = PlainReader(folder), dcp.FileSystemReader(folder)
    mine, theirs = ours.read_metadata(), torchs.read_metadata()
    assert mine.state_dict_metadata == theirs.state_dict_metadata and mine.storage_data == theirs.storage_data
    found = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    dcp.load(found, storage_reader=ours, no_dist=True)
    assert torch.equal(found["a"], state["a"]) and torch.equal(found["b"], state["b"])


def test_an_index_with_the_plans_of_its_ranks_is_read(saved):
    """As Megatron writes it."""
    folder, state = saved
    index = dcp.FileSystemReader(folder).read_metadata()
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, is_coordinator=True)
    index.all_local_plans = dcp.FileSystemWriter(folder).prepare_global_plan([planner.create_local_plan()])
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    plans = PlainReader(folder).read_metadata().all_local_plans
    assert plans == index.all_local_plans and plans[0].items and plans[0].storage_data is not None


def test_an_index_of_megatrons_own_class_is_read(saved):
    """Megatron 0.15 wrote it."""
    module = pytest.importorskip("megatron.core.dist_checkpointing.strategies.torch")
    folder, _ = saved
    index = module.MCoreMetadata()
    vars(index).update(vars(dcp.FileSystemReader(folder).read_metadata()), mcore_data={"a": {"shape": (2, 3)}})
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    assert PlainReader(folder).read_metadata().state_dict_metadata == index.state_dict_metadata


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, torch.load])
def test_what_an_index_would_run_is_refused_and_not_run(saved, call, tmp_path):
    folder, _ = saved
    (folder / ".metadata").write_bytes(pickle.dumps(Runs(call, str(tmp_path / "made"))))
    with pytest.raises(pickle.UnpicklingError, match=r"its .metadata names .*, which no index of a checkpoint needs"):
        PlainReader(folder).read_metadata()
    assert not (tmp_path / "made").exists()


def test_what_is_no_index_is_refused(saved):
    folder, _ = saved
    (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(pickle.UnpicklingError, match="no index of a checkpoint"):
        PlainReader(folder).read_metadata()
