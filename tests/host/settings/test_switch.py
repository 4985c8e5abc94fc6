"""The one switch: what it fills in, and what it prints."""

import pytest

from fgrpo_plugin.host.contract import VALIDATED
from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import ASYNC, HAL, SWITCH, F


def test_the_switch_alone_fills_in_the_rest(stock_config, inputs, capsys):
    config = stock_config(*inputs, SWITCH)
    complete(config)
    loss = config.actor_rollout_ref.actor.policy_loss
    assert loss.loss_mode == "f_grpo"
    assert loss._target_.endswith("FDivergencePolicyLossConfig")
    assert config.algorithm.rollout_correction.bypass_mode is True
    assert config.algorithm[VALIDATED] is True
    assert loss.f_divergence.divergence == "pearson" and loss.f_divergence.gamma == 0.0
    printed = capsys.readouterr().out
    shims = "config_hook applied, policy_loss_fields applied, reference_policy applied, trainer_mode applied"
    for key in (f"shims: {shims}", "loss_mode=f_grpo", "bypass_mode=True", "divergence=pearson"):
        assert key in printed
    assert "shuffle" not in printed  # `fgrpo settings` tells it


@pytest.mark.parametrize(
    "overrides, bypass, source",
    [
        ([], True, "current"),
        ([f"{F}.preset=released", "data.train_batch_size=256"], True, "current"),
        ([f"{F}.preset=released", "data.train_batch_size=512"], False, "recomputed"),
        ([f"{F}.gamma=0.5", *ASYNC], False, "recomputed"),
        ([f"{F}.gamma=0.5", "actor_rollout_ref.actor.ppo_epochs=2", "data.train_batch_size=256"], False, "recomputed"),
    ],
)
def test_the_old_log_prob_pass_is_made_only_where_it_is_needed(stock_config, inputs, overrides, bypass, source):
    config = stock_config(*inputs, "data.train_batch_size=256", SWITCH, *overrides)
    complete(config)
    assert config.algorithm.rollout_correction.bypass_mode is bypass
    if not bypass or "released" in str(overrides):
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.old_log_prob == source


@pytest.mark.parametrize(
    "overrides, said, on_policy, preference",
    [
        ([], False, "10", "0"),
        ([f"{F}.preset=stable", f"{F}.beta=0.5"], False, "2", "0"),
        ([f"{F}.preset=paper"], True, "11", "0"),
        ([f"{F}.preset=released"], True, "1", "0"),
        ([f"{F}.preset=released", f"{F}.gamma=0.4", f"{F}.beta=0.6"], True, "1.6", "0"),
        (["f_hal", f"{F}.preset=paper", f"{F}.lam=0.25"], True, "8.25", "0.25"),
        (["f_hal", f"{F}.lam=0.75"], False, "2.5", "7.5"),
        ([f"{F}.scale=paper"], "multiplies the on-policy loss", "11", "0"),
        (
            ["f_hal", f"{F}.preset=paper", f"{F}.lam={{schedule: linear, start: 0.5, end: 0.1}}"],
            True,
            "(1 - lambda) x 11",
            "lambda x 1",
        ),
    ],
)
def test_the_report_says_what_a_preset_is_now_and_calls_the_coefficients_nominal(
    stock_config, inputs, preferences, capsys, overrides, said, on_policy, preference
):
    switch = [SWITCH]
    if "f_hal" in overrides:
        switch = ["algorithm.adv_estimator=f_hal", preferences]
        overrides = overrides[1:]
    complete(stock_config(*inputs, *switch, *overrides))
    lines = capsys.readouterr().out.splitlines()
    about = [line for line in lines if "since 0.2.0" in line]
    assert len(about) == bool(said)
    if said is True:
        assert "the former preset=paper is stable, the former released is stable with gamma=1" in about[0]
    elif said:
        assert said in about[0]
    (nominal,) = [line for line in lines if "nominal" in line]
    assert f"on-policy loss {on_policy}, preference loss {preference};" in nominal
    assert "on_policy_slope" in nominal


MEGATRON = "actor_rollout_ref.actor.megatron"


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ([], True),
        ([f"+{MEGATRON}.override_ddp_config.check_for_nan_in_grad=false"], False),
        ([f"{MEGATRON}.dtype=float16"], None),  # whose scale is found by gradients that overflow
    ],
)
def test_megatron_looks_at_the_gradient_before_it_steps(stock_config, inputs, monkeypatch, overrides, found):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    config = stock_config("+fgrpo=cpu_megatron", *inputs, SWITCH, *overrides)
    complete(config)
    assert config.actor_rollout_ref.actor.megatron.override_ddp_config.get("check_for_nan_in_grad") is found


def test_other_engines_are_asked_nothing_of_the_kind(stock_config, inputs, capsys):
    complete(stock_config(*inputs, SWITCH))
    assert "check_for_nan_in_grad" not in capsys.readouterr().out


def test_f_hal_fills_in_its_loss_and_half_of_lambda(stock_config, inputs, preferences, capsys):
    from verl.utils.config import omega_conf_to_dataclass

    from fgrpo_plugin.host.settings.reading import is_offline, joins_preferences

    config = stock_config(*inputs, HAL, preferences)
    complete(config)
    loss = config.actor_rollout_ref.actor.policy_loss
    assert loss.loss_mode == "f_hal" and loss.f_divergence.lam == 0.5
    assert joins_preferences(config) and not is_offline(config)
    assert "algorithm.adv_estimator=f_hal set" in capsys.readouterr().out
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss.f_divergence.lam == 0.5


def test_lambda_zero_throughout_is_the_f_grpo_path_and_reads_no_preferences(stock_config, inputs):
    from fgrpo_plugin.host.settings.reading import joins_preferences

    config = stock_config(*inputs, HAL, f"{F}.lam=0", "+data.preference.files=[/nowhere/prefs.jsonl]")
    complete(config)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "f_grpo" and not joins_preferences(config)


def test_lambda_one_needs_neither_prompts_nor_groups_nor_a_rollout_engine(stock_config, inputs, preferences):
    from verl.utils.dataset.rl_dataset import get_dataset_class
    from verl.utils.import_utils import load_class_from_fqn

    from fgrpo_plugin.host.driver.offline import NoPrompts, NoRollouts
    from fgrpo_plugin.host.settings.reading import is_offline

    offline = [HAL, preferences, f"{F}.lam=1.0", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    config = stock_config(
        *inputs, *offline, "data.train_files=/nowhere.parquet", "data.val_files=null", "actor_rollout_ref.rollout.n=1"
    )
    complete(config)
    assert is_offline(config)
    assert get_dataset_class(config.data) is NoPrompts
    manager = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert load_class_from_fqn(manager, "AgentLoopManager") is NoRollouts
    kept = stock_config(*inputs, *offline, "+data.preference.keep_rollout=true")
    complete(kept)
    assert kept.data.custom_cls.path is None
