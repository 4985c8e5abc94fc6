"""What an older verl lacks is refused or said, and nothing where the pinned one is installed."""

from importlib.metadata import version

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from fgrpo_plugin.host.settings import releases
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from fgrpo_plugin.pinned import VERL

FILTERED = ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=reward")


@pytest.fixture
def older(monkeypatch):
    """The pinned verl without what 0.9.0 lacks."""

    def _setup(self) -> None:
        """As long as it starts an engine in any case."""

    monkeypatch.setattr(PPOTrainer, "_setup", _setup)
    monkeypatch.delattr(replay_buffer, "FILTER_GROUPS_REWARD_METRIC", raising=False)


@pytest.fixture
def offline(stock_config, inputs, preferences):
    words = ["algorithm.adv_estimator=f_hal", preferences, "trainer.val_before_train=false", "trainer.test_freq=-1"]
    words += ["+actor_rollout_ref.actor.policy_loss.f_divergence.lam=1"]
    return lambda *more: stock_config(*inputs, *words, *more)


def test_which_release_has_what(capsys):
    pinned = version("verl") == VERL
    assert releases.goes_without_engine() == releases.filters_by_own_reward() == pinned
    filtering = {"algorithm": {"filter_groups": {"enable": True, "metric": "reward"}}}
    releases.check_release(OmegaConf.create(filtering), rolls_out=True)
    assert ("metric=reward" in capsys.readouterr().out) != pinned


def test_lambda_one_without_an_engine_is_refused_where_verl_starts_one_in_any_case(older, offline):
    with pytest.raises(
        ValueError, match=r"lam=1 without a rollout engine: verl .* data\.preference\.keep_rollout=true"
    ):
        check_and_fill_in(offline())
    check_and_fill_in(offline("+data.preference.keep_rollout=true"))


def test_a_filter_by_reward_is_told_of_where_verl_has_no_reward_of_its_own(older, stock_config, inputs, capsys):
    check_and_fill_in(stock_config(*inputs, "algorithm.adv_estimator=f_grpo", *FILTERED))
    assert "algorithm.filter_groups.metric=reward: verl" in capsys.readouterr().out
    others = [FILTERED[0], "algorithm.filter_groups.metric=acc"]
    check_and_fill_in(stock_config(*inputs, "algorithm.adv_estimator=f_grpo", *others))
    check_and_fill_in(stock_config(*inputs, "algorithm.adv_estimator=f_grpo", FILTERED[1]))
    assert "filter_groups" not in capsys.readouterr().out
