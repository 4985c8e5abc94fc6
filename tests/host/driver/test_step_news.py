"""Lines of a step: rollouts that disagree, a batch without signal, responses that are absent."""

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.contract import PREFIX
from fgrpo_plugin.host.driver.step_news import ROLLOUT_DIFFERENCE_WARNING, StepNews


def trainer(mode="sync", estimator="f_grpo"):
    config = {
        "algorithm": {"adv_estimator": estimator},
        "trainer": {"v1": {"trainer_mode": mode}},
        "actor_rollout_ref": {"actor": {"policy_loss": {"f_divergence": {"lam": 0.5}}}},
    }
    found = StepNews()
    found.config, found.global_steps = OmegaConf.create(config), 3
    return found


def said(news, capsys, **metrics):
    values = {PREFIX + "zero_advantage_share": 0.5, PREFIX + "absent_share": 0.0}
    values |= {name if "/" in name else PREFIX + name: value for name, value in metrics.items()}
    news._say_what_is_odd(values)
    return capsys.readouterr().out


def test_an_ordinary_step_is_silent(capsys):
    assert said(trainer(), capsys, **{"training/rollout_probs_diff_mean": 0.001}) == ""


@pytest.mark.parametrize(("mode", "kind"), [("sync", "fresh"), ("colocate_async", "stale")])
def test_rollouts_that_disagree_are_told_in_every_step(capsys, mode, kind):
    news, limit = trainer(mode), ROLLOUT_DIFFERENCE_WARNING[kind]
    for factor, told in ((1.01, True), (0.99, False), (1.01, True)):
        line = said(news, capsys, **{"training/rollout_probs_diff_mean": factor * limit})
        assert ("step 3: mean |p_actor - p_rollout| is" in line) is told


@pytest.mark.parametrize("estimator", ["f_grpo", "f_hal"])
def test_a_batch_of_equal_rewards_is_told_once_a_run(capsys, estimator):
    news = trainer(estimator=estimator)
    assert said(news, capsys, zero_advantage_share=0.99) == ""
    line = said(news, capsys, zero_advantage_share=1)
    assert "step 3: every group's rewards are all equal" in line
    assert ("the preference rows have theirs" in line) == (estimator == "f_hal")
    assert said(news, capsys, zero_advantage_share=1) == ""


def test_absent_responses_are_told_once_a_run(capsys):
    news = trainer()
    assert "step 3: 12.50% of the responses that were asked for take no part" in said(news, capsys, absent_share=0.125)
    assert said(news, capsys, absent_share=0.25) == ""
