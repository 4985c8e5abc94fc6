"""One gloo backend."""

from types import SimpleNamespace

import pytest

from fgrpo_plugin.host.cpu import gloo


def test_one_gloo_backend_unless_asked_otherwise(facts):
    assert facts["groups"] == ["gloo", "cpu:gloo"]


def test_collective_refuses_an_unknown_host():

    def initialize_global_process_group_ray(timeout_second=None, backend=None, port=None): ...

    other = SimpleNamespace(initialize_global_process_group_ray=initialize_global_process_group_ray)
    with pytest.raises(RuntimeError, match=r"_process_group_ray of the installed verl \d.* install verl==0\.9\.1 "):
        gloo.register(other)
    assert other.initialize_global_process_group_ray is initialize_global_process_group_ray
