"""This machine measured as a GPU."""

import json

import pytest

from fgrpo_plugin.plan.gpus import find_gpu
from tests.plan.planning import run


def test_a_measured_machine_is_a_gpu(tmp_path):
    import psutil

    file = tmp_path / "machine.yaml"
    assert run("--measure-cpu", file).exit_code == 0
    machine = find_gpu(str(file))
    assert machine.memory_gib == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.01)
    assert 1e-4 < machine.tflops < 50 and 0.1 < machine.bandwidth_gb < 2000
    plan = json.loads(run("--model", "qwen2.5-0.5b", "--gpu", file, "--gpus", 1, "--json").output)
    assert plan["gpu"]["name"] == "cpu"
