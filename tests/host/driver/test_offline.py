"""lambda = 1: a trainer without a rollout engine."""

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import HAL, F


def test_the_trainer_of_lambda_one_asks_for_no_rollout_engine(stock_config, inputs, preferences):
    from verl.trainer.ppo.v1 import get_trainer_cls

    from fgrpo_plugin.host.driver.offline import OfflineTrainer

    def trainer_of(*overrides):
        config = stock_config(*inputs, preferences, *overrides, "trainer.val_before_train=false")
        complete(config)
        trainer = get_trainer_cls("sync").__new__(get_trainer_cls("sync"), config)
        trainer.config = config
        return trainer

    lone = trainer_of(HAL, f"{F}.lam=1")
    assert isinstance(lone, OfflineTrainer) and lone._enable_hybrid_replicas is False
    assert trainer_of(HAL, f"{F}.lam=1", "+data.preference.keep_rollout=true")._enable_hybrid_replicas is True
    assert not isinstance(trainer_of(HAL), OfflineTrainer)
