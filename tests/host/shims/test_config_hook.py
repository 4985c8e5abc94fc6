"""Through the real entry point, and through another."""

import os
import subprocess
import sys
import types

import pytest

from fgrpo_plugin.host.settings import switch
from fgrpo_plugin.host.shims import config_hook
from tests.support.overrides import SWITCH


def test_the_real_entry_point_ends_in_one_sentence_before_ray(inputs, tmp_path):
    refused = ["algorithm.use_kl_in_reward=true", "hydra.run.dir=.", "hydra.output_subdir=null"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *inputs, SWITCH, *refused]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fgrpo-plugin: algorithm.use_kl_in_reward=true contradicts")
    assert "Traceback" not in done.stderr and "ray init" not in done.stdout


def test_another_entry_point_is_refused(inputs, tmp_path):
    script = tmp_path / "main_other.py"
    script.write_text(
        "import sys\n"
        "from hydra import compose, initialize_config_module\n"
        "from verl.utils.device import auto_set_device\n"
        "with initialize_config_module('verl.trainer.config', version_base=None):\n"
        "    config = compose('ppo_trainer', sys.argv[1:])\n"
        "auto_set_device(config)\n"
    )
    done = subprocess.run([sys.executable, str(script), *inputs, SWITCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "verl.trainer.main_ppo alone, not main_other.py" in done.stderr.strip().splitlines()[-1]


@pytest.fixture
def watched(monkeypatch):
    """(pid, run) of each watch that is started."""
    started = []
    monkeypatch.setattr(config_hook, "mark_this_process", lambda: "run")
    monkeypatch.setattr(config_hook, "watch_for", lambda *given: started.append(given))
    return started


@pytest.mark.parametrize("estimator, watches", [("f_grpo", 1), ("f_hal", 1), ("grpo", 0)])
def test_a_run_of_ours_is_watched_once(estimator, watches, watched, monkeypatch, stock_config):
    completed = []
    monkeypatch.setattr(switch, "complete", completed.append)
    device = types.SimpleNamespace(auto_set_device=lambda config: None)
    monkeypatch.setattr(config_hook, "require_replaced", lambda *_: None)
    assert config_hook.apply(device)
    config = stock_config(f"algorithm.adv_estimator={estimator}")
    from_verl = compile("device.auto_set_device(config)", f"/{config_hook.ENTRY_POINT}", "exec")
    exec(from_verl, {"device": device, "config": config})
    assert watched == [(os.getpid(), "run")] * watches and completed == [config] * watches


def test_what_is_refused_is_not_watched(watched, monkeypatch, stock_config):
    def complete(config):
        raise ValueError("data.seed=a must be a number")

    monkeypatch.setattr(switch, "complete", complete)
    with pytest.raises(SystemExit, match=r"^fgrpo-plugin: data\.seed=a must be a number$"):
        config_hook.begin(stock_config("algorithm.adv_estimator=f_grpo"))
    assert not watched
