"""An agent loop is made with what hydra would give it."""

import re
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap

from fgrpo_plugin.host.cpu.agent_loops import made, register


class Loop:
    """Keeps what it is given."""

    def __init__(self, **arguments):
        self.arguments = arguments


TARGET = f"{__name__}.Loop"


@pytest.fixture
def arguments():
    config = OmegaConf.create({"data": {"a": 1}})
    return {
        "trainer_config": DictConfigWrap(config=config),
        "server_manager": object(),
        "tokenizer": object(),
        "processor": None,
        "hf_model_type": "qwen2",
        "dataset_cls": Loop,
        "data_config": DictConfigWrap(config.data),
        "tools": ToolListWrap([object()]),
    }


@pytest.mark.parametrize("config", [{"_target_": TARGET}, {"_target_": TARGET, "more": 3}])
@pytest.mark.parametrize("of", [dict, OmegaConf.create])
def test_it_is_given_the_same_objects_as_by_hydra(arguments, config, of):
    ours = made(config=of(config), **arguments).arguments
    theirs = hydra.utils.instantiate(config=of(config), **arguments).arguments
    assert list(ours) and set(ours) == set(theirs)
    assert all(ours[name] is arguments[name] for name in arguments)
    assert all(ours[name] is theirs[name] or ours[name] == theirs[name] for name in theirs)


def test_a_class_that_is_not_there_is_named(arguments):
    with pytest.raises(Exception, match="NoLoop"):
        made(config={"_target_": f"{__name__}.NoLoop"}, **arguments)


def test_verls_module_uses_nothing_else_of_hydra(monkeypatch):
    used = set(re.findall(r"\bhydra\.(?!cc\b)[\w.]+", Path(agent_loop.__file__).read_text()))
    assert used == {"hydra.utils.instantiate"}
    monkeypatch.setattr(agent_loop, "hydra", hydra)  # put back afterwards
    register(agent_loop)
    assert agent_loop.hydra.utils.instantiate is made
