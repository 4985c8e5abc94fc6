"""Hyper-parameters from the configuration to the workers."""

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import SWITCH, F


def test_the_settings_of_a_preset_are_what_the_workers_get(stock_config, inputs):
    config = stock_config(*inputs, SWITCH, f"{F}.preset=paper", f"{F}.weight_level=token_mean")
    complete(config)
    found = config.actor_rollout_ref.actor.policy_loss.f_divergence
    assert (found.gamma, found.scale, found.weight_scale, found.weight_level) == (0.0, "paper", "group", "token_mean")
