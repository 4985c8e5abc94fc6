"""What a run's configuration is taken to ask for."""

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import HAL, F


def test_a_schedule_keeps_both_halves_whatever_its_values(stock_config, inputs, preferences):
    from fgrpo_plugin.host.settings.reading import is_offline, joins_preferences

    schedule = f"{F}.lam={{schedule: linear, start: 0, end: 1}}"
    config = stock_config(*inputs, HAL, preferences, schedule)
    complete(config)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "f_hal"
    assert joins_preferences(config) and not is_offline(config)
