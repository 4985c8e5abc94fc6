"""Which class a trainer is."""

import pytest
from omegaconf import OmegaConf


def test_the_stock_trainer_is_what_other_algorithms_get():
    from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls

    from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer

    for mode in ("sync", "colocate_async", "separate_async"):
        assert issubclass(get_trainer_cls(mode), FDivergenceTrainer)
    made = []

    class Stock(PPOTrainerSync):
        def __init__(self, config):
            made.append(type(self))

    ours = type("Ours", (FDivergenceTrainer, Stock), {"stock": Stock})
    ours(OmegaConf.create({"algorithm": {"adv_estimator": "grpo"}}))
    ours(OmegaConf.create({"algorithm": {"adv_estimator": "f_grpo", "f_divergence_validated": True}}))
    users = type("Users", (ours,), {})
    users(OmegaConf.create({"algorithm": {"adv_estimator": "grpo"}}))
    assert made == [Stock, ours, users]
    with pytest.raises(ValueError, match="without validation"):
        ours(OmegaConf.create({"algorithm": {"adv_estimator": "f_grpo"}}))
