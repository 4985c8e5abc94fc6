"""Deterministic mode: what it sets, and what it refuses."""

import pytest

from fgrpo_plugin.host.settings.determinism import MANAGER, OURS, SWITCH, is_deterministic
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from tests.support.overrides import ASYNC, F
from tests.support.overrides import HAL as F_HAL
from tests.support.overrides import SWITCH as F_GRPO

DETERMINISTIC = f"{SWITCH}=true"
VLLM = "actor_rollout_ref.rollout.name=vllm"
SEEDED = "data.seed=0"
BASE = [VLLM, SEEDED, "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
ENGINES = [f"actor_rollout_ref.{part}.fsdp_config.full_determinism" for part in ("actor", "ref")]


def filled(stock_config, *overrides):
    config = stock_config(F_GRPO, *BASE, *overrides)
    _, changes = check_and_fill_in(config)
    return config, {key: value for key, value, _ in changes}


def test_on_a_gpu_verl_switches_on_what_it_knows_and_the_rest_is_set(stock_config, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "")
    config, changes = filled(stock_config, DETERMINISTIC, "data.validation_shuffle=true")
    wanted = {MANAGER: OURS, "data.validation_shuffle": False, **dict.fromkeys(ENGINES, True)}
    assert {key: changes.get(key) for key in wanted} == wanted
    assert config.actor_rollout_ref.rollout.full_determinism is True
    assert config.actor_rollout_ref.rollout.max_num_seqs > 1 and is_deterministic(config)


def test_on_a_cpu_vllm_serves_one_response_at_a_time_in_place_of_kernels_that_need_a_gpu(stock_config, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    config, _ = filled(stock_config, DETERMINISTIC)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.full_determinism, rollout.max_num_seqs, rollout.enable_prefix_caching) == (False, 1, False)
    assert config.data.validation_shuffle is False and is_deterministic(config)
    assert [config.actor_rollout_ref[part].fsdp_config.full_determinism for part in ("actor", "ref")] == [True, True]


def test_without_it_nothing_of_it_is_set(stock_config):
    config, changes = filled(stock_config)
    assert not is_deterministic(config) and not {MANAGER, "data.validation_shuffle", *ENGINES} & changes.keys()
    assert config.actor_rollout_ref.rollout.enable_prefix_caching is True


@pytest.mark.parametrize(
    "overrides, named",
    [
        (ASYNC, "trainer.v1.trainer_mode=separate_async"),
        (["trainer.v1.trainer_mode=colocate_async"], "trainer.v1.trainer_mode=colocate_async"),
        (
            ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=reward"],
            "algorithm.filter_groups.enable=true",
        ),
        (["trainer.v1.sampler.sync_refill_failed_groups=true"], "trainer.v1.sampler.sync_refill_failed_groups=true"),
        (
            ["trainer.v1.sampler.custom_sampler.path=a.py", "trainer.v1.sampler.custom_sampler.name=A"],
            "trainer.v1.sampler.custom_sampler",
        ),
        (["actor_rollout_ref.rollout.name=sglang"], "actor_rollout_ref.rollout.name=sglang"),
        ([f"+{MANAGER}=mine.Manager"], f"{MANAGER}=mine.Manager"),
        (["data.shuffle=true", "data.seed=null"], "data.shuffle=true without data.seed"),
    ],
)
def test_what_depends_on_time_is_refused(stock_config, overrides, named):
    config = stock_config(F_GRPO, *BASE, DETERMINISTIC, *overrides)
    with pytest.raises(ValueError, match=f"contradicts {SWITCH}=true") as refused:
        check_and_fill_in(config)
    assert str(refused.value).startswith(named + " contradicts")
    check_and_fill_in(stock_config(F_GRPO, *BASE, *overrides))  # by itself it is taken


def test_where_nothing_is_rolled_out_there_is_nothing_to_seed(stock_config):
    config = stock_config(
        F_HAL, DETERMINISTIC, f"{F}.lam=1", "++data.preference.files=[a.jsonl]", *BASE,
        "++data.preference.batch_size=16", "trainer.val_before_train=false", "trainer.test_freq=-1",
    )  # fmt: skip
    check_and_fill_in(config)
    assert not is_deterministic(config)
