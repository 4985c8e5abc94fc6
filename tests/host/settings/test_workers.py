"""What the workers alone can know is told from what is wrong."""

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.settings import workers


def run(runtime_env=None, address=None, **more):
    ray = {"runtime_env": runtime_env or {}, "address": address}
    return OmegaConf.create({"ray_kwargs": {"ray_init": ray}, **more})


@pytest.mark.parametrize("name", workers._CODE)
def test_code_of_the_workers_own(name):
    assert workers.workers_own_code(run({name: "/a/users"})) == f"ray_kwargs.ray_init.runtime_env.{name}"
    assert workers.workers_own_code(run({name: None, "env_vars": {"A": "b"}})) is None


def test_the_process_of_a_client_is_no_node(monkeypatch):
    assert workers.workers_own_code(run(address="ray://head:10001")) == "ray_kwargs.ray_init.address"
    assert workers.workers_own_code(run(address="auto")) is None
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert workers.workers_own_code(run()) == "RAY_ADDRESS"


def test_modules_that_this_process_has_imported_too_register_no_more(monkeypatch):
    name = "VERL_USE_EXTERNAL_MODULES"
    config = run({"env_vars": {name: "mine"}})
    assert workers.registers_more(config) == f"ray_kwargs.ray_init.runtime_env.env_vars.{name}"
    monkeypatch.setenv(name, "mine")
    assert workers.registers_more(config) is None
    assert workers.registers_more(run({"pip": ["mine"]})) == "ray_kwargs.ray_init.runtime_env.pip"


def test_a_file_is_found_under_verls_own_root_too():
    assert workers.file_of(OmegaConf.create({"file": "version/version"}), "file").is_file()


def test_a_name_is_looked_up_as_verl_does(capsys):
    config = run()
    assert workers.imported(config, "collections.OrderedDict", workers.attribute)[0].__name__ == "OrderedDict"
    found, problem = workers.imported(config, "collections.OrderedDict.items", workers.attribute)
    assert found is None and problem.startswith("the class collections.OrderedDict.items cannot be imported (Module")
    assert workers.imported(run({"uv": ["x"]}), "not_there.A", workers.attribute) == (None, None)
    assert "because of ray_kwargs.ray_init.runtime_env.uv; the workers tell." in capsys.readouterr().out


def test_what_an_entry_refers_to_is_read_where_it_can_be(capsys):
    config = run({"env_vars": {"OF_WORKERS": "x"}})
    section = OmegaConf.create({"a": "${oc.env:OF_WORKERS}", "b": {"c": "${a}"}, "d": "${oc.env:OF_A_NODE}"})
    assert workers.value(config, section, "a") == ("x", True)
    assert workers.value(config, section, "b") == ({"c": "x"}, True)
    assert workers.value(config, section, "none") == (None, True)
    assert OmegaConf.is_config(workers.value(config, section, "b", whole=False)[0])
    assert not capsys.readouterr().out
    assert workers.value(config, section, "d") == (None, False)
    assert "d cannot be read (" in capsys.readouterr().out
