"""The advantage estimator in verl's registry."""

import pytest
from omegaconf import OmegaConf


def test_the_estimator_refuses_an_unvalidated_configuration():
    import torch

    from fgrpo_plugin.host.driver.advantage import f_grpo_advantage

    rewards, mask = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="only entry point"):
        f_grpo_advantage(rewards, mask, OmegaConf.create({}), ["a", "a"])
