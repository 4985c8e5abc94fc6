"""verl starts the reference policy for our losses."""

import pytest

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import SWITCH


def test_reference_policy_is_on_for_us_and_untouched_for_others(stock_config, inputs):
    from verl.trainer.ppo.utils import need_reference_policy

    config = stock_config(*inputs, SWITCH)
    with pytest.raises(ValueError, match="without validation"):
        need_reference_policy(config)
    complete(config)
    assert need_reference_policy(config) is True
    assert not need_reference_policy(stock_config(*inputs, "algorithm.adv_estimator=grpo"))
    assert need_reference_policy(stock_config(*inputs, "actor_rollout_ref.actor.use_kl_loss=true"))
