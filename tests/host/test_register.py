"""The entry point: found by verl in a fresh process, in both import orders, and lazy."""

import json
import re
import subprocess
import sys

import pytest

from fgrpo_plugin.pinned import VERL


def _fresh(code: str, **environment: str) -> str:
    import os

    env = {**os.environ, "VERL_PLATFORM": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("first", ["import verl", "import fgrpo_plugin.host.register"])
def test_loss_and_estimator_are_registered_in_both_import_orders(first):
    code = (
        f"{first}\n"
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn\n"
        "print(get_adv_estimator_fn('f_grpo').__module__, get_policy_loss_fn('f_grpo').__module__)"
    )
    assert _fresh(code) == "fgrpo_plugin.host.driver.advantage fgrpo_plugin.host.worker.policy_loss"


MODULES = """
import json, sys
import verl
heavy = ("verl", "vllm", "ray", "torch", "transformers", "hydra", "omegaconf", "tensordict", "transfer_queue")
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in heavy)))
"""


def test_import_verl_with_the_plugin_imports_nothing_more_of_the_host():
    with_plugin = json.loads(_fresh(MODULES))
    without = json.loads(_fresh(MODULES, VERL_USE_EXTERNAL_PLUGINS="none"))
    assert with_plugin == without
    assert "verl.trainer.ppo.core_algos" not in with_plugin


def test_the_laziness_check_can_fail():
    eager = MODULES.replace("import verl\n", "import verl, verl.trainer.ppo.core_algos\n")
    assert json.loads(_fresh(eager)) != json.loads(_fresh(MODULES, VERL_USE_EXTERNAL_PLUGINS="none"))


def test_an_error_while_attaching_is_printed_and_leaves_the_host_usable():
    code = (
        "import sys, types\n"
        "sys.modules['fgrpo_plugin.host.shims.config_hook'] = types.ModuleType('empty')\n"
        "import verl\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert "fgrpo-plugin: this verl does not fit f_grpo: verl.utils.device does not fit this verl" in done.stderr
    assert done.stdout.strip().endswith("imported")


def test_replaced_host_functions_can_be_pickled_by_value():
    """Ray pickles the globals of a trainer defined in ``__main__``; these are among them in users' recipes."""
    from ray import cloudpickle
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.utils.device import auto_set_device
    from verl.workers.utils.losses import get_policy_loss_fn, ppo_loss

    for function in (need_reference_policy, auto_set_device, get_policy_loss_fn, ppo_loss):
        assert cloudpickle.loads(cloudpickle.dumps(function)).__name__ == function.__name__


def test_a_taken_name_is_not_overwritten():
    from verl.trainer.ppo import core_algos

    from fgrpo_plugin.host.register import _advantage_and_loss

    taken = dict(core_algos.POLICY_LOSS_REGISTRY)
    core_algos.POLICY_LOSS_REGISTRY["f_grpo"] = core_algos.compute_policy_loss_vanilla
    try:
        with pytest.raises(RuntimeError, match="already registered"):
            _advantage_and_loss(core_algos)
    finally:
        core_algos.POLICY_LOSS_REGISTRY.update(taken)


def test_an_unknown_host_function_stops_f_grpo_alone(monkeypatch, stock_config, inputs):
    import types

    from fgrpo_plugin.host import shims
    from fgrpo_plugin.host.settings.switch import complete
    from fgrpo_plugin.host.shims import apply_checked, policy_loss_fields

    monkeypatch.setattr(shims, "REFUSED", {})
    monkeypatch.setattr("fgrpo_plugin.host.settings.switch.REFUSED", shims.REFUSED)

    def ppo_loss(config, model_output, data, dp_group=None):
        return None

    unknown = types.SimpleNamespace(ppo_loss=ppo_loss, get_policy_loss_fn=None)
    apply_checked("policy_loss_fields", policy_loss_fields.apply, unknown)
    assert unknown.ppo_loss is ppo_loss
    with pytest.raises(ValueError, match=rf"ppo_loss of the installed verl .* install verl=={re.escape(VERL)}"):
        complete(stock_config(*inputs, "algorithm.adv_estimator=f_grpo"))
