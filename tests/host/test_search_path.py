"""Hydra is offered the config groups of this package."""

from types import SimpleNamespace

from fgrpo_plugin.host.search_path import register_search_path


def test_the_search_path_is_appended_behind_verls():
    registered, appended = [], []
    plugins = SimpleNamespace(Plugins=SimpleNamespace(instance=lambda: SimpleNamespace(register=registered.append)))
    register_search_path(plugins)
    (plugin,) = registered
    plugin().manipulate_search_path(SimpleNamespace(append=lambda provider, path: appended.append((provider, path))))
    assert appended == [("fgrpo-plugin", "pkg://fgrpo_plugin.conf")]


def test_a_group_of_ours_composes_by_its_name(stock_config):
    assert stock_config("+fgrpo=rlvr").algorithm.adv_estimator == "f_grpo"
