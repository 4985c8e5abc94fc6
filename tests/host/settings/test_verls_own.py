"""What verl's validation refuses is refused before Ray starts, in its words."""

import pytest

from fgrpo_plugin.host.settings.switch import check_and_fill_in
from tests.support.overrides import MICRO, STATIC, SWITCH


@pytest.mark.parametrize(
    "overrides, words",
    [
        # validate_config's own assertions and errors, and one of a dataclass that Hydra wraps.
        ([*STATIC, f"{MICRO}=1", "data.train_batch_size=64"], "train_batch_size (64) must be >= actor.ppo_mini_batch"),
        (["actor_rollout_ref.rollout.temperature=0", "actor_rollout_ref.rollout.val_kwargs.do_sample=true"], "greater"),
        (["actor_rollout_ref.actor.loss_agg_mode=mean"], "Invalid loss_agg_mode: mean"),
    ],
)
def test_its_reasons_come_before_ray(stock_config, inputs, overrides, words):
    with pytest.raises(ValueError) as error:
        check_and_fill_in(stock_config(*inputs, SWITCH, *overrides))
    assert str(error.value).startswith("verl refuses this configuration: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_says_when_it_passes_is_not_said_twice(stock_config, inputs, capsys):
    check_and_fill_in(stock_config(*inputs, SWITCH))
    assert "checks passed" not in capsys.readouterr().out
