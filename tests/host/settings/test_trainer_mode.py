"""Which trainers f-GRPO takes: verl's, and another plugin's in whichever order the two are loaded."""

import os
import subprocess
import sys

import pytest
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from fgrpo_plugin.host.settings.trainer_mode import STOCK, check_trainer_mode

PLUGIN = """
import verl.trainer.ppo.v1 as v1

@v1.register_trainer("theirs")
class Theirs(v1.PPOTrainerSync):
    def _compute_metrics(self, *args, **kwargs):
        return super()._compute_metrics(*args, **kwargs)
"""
LOOK = """
import verl
from verl.trainer.ppo.v1 import get_trainer_cls
from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
theirs = get_trainer_cls("theirs")
names = [cls.__name__ for cls in theirs.__mro__]
assert names.index("FDivergenceTrainer") < names.index("Theirs") < names.index("PPOTrainerSync"), names
from hydra import compose, initialize_config_module
from fgrpo_plugin.host.settings.trainer_mode import check_trainer_mode
with initialize_config_module("verl.trainer.config", version_base=None):
    check_trainer_mode(compose("ppo_trainer", overrides=["trainer.v1.trainer_mode=theirs"]))
"""


@pytest.mark.parametrize("modules", ["their_plugin", "fgrpo_plugin.host.register,their_plugin"])
def test_another_plugins_trainer_gets_our_part_in_both_orders(tmp_path, modules):
    (tmp_path / "their_plugin.py").write_text(PLUGIN)
    env = os.environ | {
        "VERL_USE_EXTERNAL_MODULES": modules,
        "VERL_PLATFORM": "",  # the platform cpu is ours, and not there yet where theirs comes first
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trainer_mode=theirs is not one of verl's" in done.stdout
    assert "has not been tried with its own _compute_metrics." in done.stdout


@pytest.mark.parametrize("mode", STOCK)
def test_verls_own_modes_pass_without_a_word(stock_config, capsys, mode):
    check_trainer_mode(stock_config(f"trainer.v1.trainer_mode={mode}"))
    assert capsys.readouterr().out == ""


def test_what_stands_in_verls_table_without_our_part_is_refused(stock_config, monkeypatch):
    monkeypatch.setitem(TRAINER_REGISTRY, "bare", type("Bare", (PPOTrainerSync.__mro__[1],), {}))
    with pytest.raises(ValueError, match=r"trainer_mode=bare runs .*Bare.*without verl's register_trainer"):
        check_trainer_mode(stock_config("trainer.v1.trainer_mode=bare"))


def test_an_unknown_mode_is_refused_with_those_that_are_known(stock_config):
    with pytest.raises(ValueError, match=r"trainer_mode=fast is not known; choose one of .*sync"):
        check_trainer_mode(stock_config("trainer.v1.trainer_mode=fast"))
