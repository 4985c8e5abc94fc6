"""A response comes to the reward worker as it was sent, whatever its length."""

import pickle
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.protocol import DataProto

from fgrpo_plugin.host.cpu.empty_tensors import register
from tests.host.cpu.fresh import ROOT

NAME = "VERL_DATAPROTO_SERIALIZATION_METHOD"
GROUP = ROOT / "fgrpo_plugin" / "conf" / "fgrpo" / "cpu_common.yaml"


@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16, torch.bool])
def test_it_is_what_was_sent(length, dtype, monkeypatch):
    monkeypatch.setenv(NAME, OmegaConf.load(GROUP).ray_kwargs.ray_init.runtime_env.env_vars[NAME])
    monkeypatch.delattr(torch, "save")  # which is what costs
    tensors = {"prompts": torch.arange(4).view(1, 4), "responses": torch.ones(1, length).to(dtype)}
    names = {"data_source": np.array(["sums"], dtype=object)}
    given = DataProto.from_dict(tensors, non_tensors=names, meta_info={"step": 3})
    came = pickle.loads(pickle.dumps(given))
    assert set(came.batch.keys()) == set(tensors) and came.meta_info == {"step": 3} and len(came) == 1
    for key, value in tensors.items():
        assert came.batch[key].dtype == value.dtype and torch.equal(came.batch[key], value)
    assert came.non_tensor_batch["data_source"].tolist() == ["sums"]


def test_a_verl_that_reads_otherwise_is_left_alone():
    module = ModuleType("protocol")
    before = dict(vars(module))
    register(module)
    assert vars(module) == before
