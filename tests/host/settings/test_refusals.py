"""What contradicts f-GRPO and f-HAL is refused in which words."""

import pytest

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import ASYNC, HAL, MICRO, REFERENCE, STATIC, SWITCH, F


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["trainer.use_v1=false"], "trainer.use_v1=false"),
        (["actor_rollout_ref.rollout.max_model_len=512"], "leaves no token for its response"),
        (["actor_rollout_ref.model.lora_rank=640"], "an adapter of rank 640"),
        (["actor_rollout_ref.rollout.name=null"], "a missing actor_rollout_ref.rollout.name"),
        (["trainer.critic_warmup=5"], "verl would not update the actor before that step"),
        (
            [*ASYNC, "actor_rollout_ref.rollout.checkpoint_engine.backend=naive"],
            "backend=naive in the mode separate_async",
        ),
        ([*ASYNC, "reward.reward_model.enable=true"], "enable_resource_pool=false in the mode separate_async"),
        ([*ASYNC, "actor_rollout_ref.model.lora_rank=8"], "every rollout comes from the initial policy"),
        (
            [*ASYNC, "model_engine=megatron", "actor_rollout_ref.model.lora.rank=8"],
            "set actor_rollout_ref.model.lora.merge=true",
        ),
        (["actor_rollout_ref.model.lora.rank=8"], "LoRA without actor_rollout_ref.model.lora_rank"),
        (["actor_rollout_ref.model.lora_adapter_path=/x"], "LoRA without actor_rollout_ref.model.lora_rank"),
        (
            ["model_engine=megatron", "actor_rollout_ref.model.lora_rank=8"],
            "LoRA without actor_rollout_ref.model.lora.",
        ),
        (
            ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=null"],
            "without algorithm.filter_groups",
        ),
        (
            [
                *("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc"),
                "reward.reward_model.enable=true",
            ],
            "a reward model on the training GPUs",
        ),
        (
            [
                *("reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=true"),
                "reward.reward_model.n_gpus_per_node=0",
            ],
            "enable_resource_pool=true without GPUs",
        ),
        (["algorithm.use_kl_in_reward=true"], "algorithm.use_kl_in_reward=true"),
        (["actor_rollout_ref.rollout.n=1"], "rollout.n=1"),
        (
            ["actor_rollout_ref.actor.ppo_mini_batch_size=27"],
            "makes 108 rows, no multiple of the 8 data-parallel ranks",
        ),
        (["model_engine=torchtitan"], "choose one of dp, megatron, veomni"),
        (
            [*STATIC, f"{MICRO}=3"],
            "ppo_mini_batch_size x actor_rollout_ref.rollout.n makes 1024 rows on 8 data-parallel",
        ),
        ([f"{REFERENCE}=48", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"], "ref.log_prob_micro_batch_size"),
        (["actor_rollout_ref.actor.shuffle=true"], "shuffle=true"),
        (["algorithm.rollout_correction.rollout_is=token"], "rollout_is"),
        (["critic.enable=true"], "critic.enable=true"),
        (["distillation.enabled=true"], "distillation.enabled=true"),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=gspo"], "loss_mode=gspo"),
        ([f"{F}.beta=0"], "f_divergence.beta=0"),
        ([f"{F}.beta=-1"], "f_divergence.beta=-1"),
        ([f"{F}.lam=1.5"], "f_divergence.lam=1.5"),
        ([f"{F}.lam=0.5"], "preference data"),
        ([f"{F}.divergence=nope"], "nope"),
        ([f"{F}.link=nope"], "nope"),
        ([f"{F}.alpha=2"], "alpha"),
        ([f"{F}.level=word"], "level='word'"),
        ([f"{F}.betta=0.1"], "f_divergence.betta"),
        ([f"{F}.weight_cap=0.5"], "weight_cap=0.5"),
        ([f"{F}.scale=big"], "scale='big'"),
        ([f"{F}.weight_scale=row"], "weight_scale='row'"),
        ([f"{F}.preset=paper", f"{F}.weight_cap=2"], "weight_cap=2 with weight_scale=group"),
        ([f"{F}.preset=mine"], "preset='mine'"),
        (["data.train_files=/nowhere/rows.parquet"], "data.train_files=/nowhere/rows.parquet"),
        (["data.prompt_key=question"], "column question is missing"),
        (["actor_rollout_ref.model.path=/nowhere/model"], "actor_rollout_ref.model.path=/nowhere/model"),
        (["actor_rollout_ref.model.path='~/model'"], "write the folder's full path"),
        (["+actor_rollout_ref.actor.fsdp_config.router_replay.mode=R3"], "router_replay.mode"),
        (["algorithm.adv_estimator=f_hal"], "data.preference.files is empty"),
    ],
)
def test_contradictions_are_refused_by_name(stock_config, inputs, overrides, words):
    config = stock_config(*inputs, SWITCH, *overrides)
    with pytest.raises(ValueError) as error:
        complete(config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [*ASYNC],
        [*ASYNC, "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora.merge=true"],
        ["actor_rollout_ref.model.lora_rank=8"],
        # On shared GPUs verl sends an adapter inside a process, whatever is set.
        ["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl"],
        ["trainer.critic_warmup=1"],  # verl updates from this step on, and the first is 1
    ],
)
def test_adapters_that_verl_sends_are_taken(stock_config, inputs, overrides):
    complete(stock_config(*inputs, SWITCH, *overrides))


def test_our_loss_without_our_estimator_is_refused(stock_config, inputs):
    config = stock_config(*inputs, "algorithm.adv_estimator=grpo", f"{F}.beta=0.1")
    with pytest.raises(ValueError, match=r"set algorithm\.adv_estimator=f_grpo"):
        complete(config)


LAM_ONE = f"{F}.lam=1"


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["+data.preference.files=[/nowhere/prefs.jsonl]"], "/nowhere/prefs.jsonl: cannot be read"),
        (["+data.preference.file=x"], "data.preference.file is not known"),
        (["+data.preference.batch_size=7"], "data.preference.batch_size=7 must be a multiple of 16"),
        (["+data.preference.batch_size=7", "trainer.n_gpus_per_node=1"], "must be a multiple of 2"),
        (
            [
                "+data.preference.batch_size=16",
                "actor_rollout_ref.actor.use_dynamic_bsz=false",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=16",
            ],
            "data.preference.batch_size=16 makes 80 rows on 8 data-parallel ranks, no multiple of",
        ),
        ([f"{F}.lam=2"], "lam=2 must be a number in [0, 1]"),
        ([f"{F}.preference_gamma=-1"], "preference_gamma=-1"),
        ([f"{F}.preference_gamma=1", "actor_rollout_ref.actor.ppo_epochs=2"], "takes the current policy for pi_old"),
        (["algorithm.adv_estimator=f_grpo", f"{F}.lam=0.5"], "set algorithm.adv_estimator=f_hal, or remove lam"),
        ([LAM_ONE, *ASYNC], "trainer.v1.trainer_mode=separate_async with lam=1"),
        ([LAM_ONE, "trainer.v1.trainer_mode=colocate_async"], "trainer.v1.trainer_mode=colocate_async with lam=1"),
        ([LAM_ONE], "name them in data.preference.val_files"),
        ([LAM_ONE, "actor_rollout_ref.actor.entropy_coeff=0.1"], "they see on-policy rows only"),
        ([LAM_ONE, "actor_rollout_ref.actor.use_kl_loss=true"], "they see on-policy rows only"),
        ([LAM_ONE, "reward.reward_model.enable=true"], "nothing is rewarded"),
        ([LAM_ONE, "trainer.rollout_data_dir=x"], "trainer.rollout_data_dir with lam=1"),
        ([LAM_ONE, "data.train_batch_size=300"], "make it a multiple of 256"),
        (["algorithm.use_kl_in_reward=true"], "contradicts algorithm.adv_estimator=f_hal"),
        (["algorithm.adv_estimator=f_grpo"], "which algorithm.adv_estimator=f_grpo does not read"),
        (["+data.preference.batch_size=2048"], "(512 of the scarcer kind); set it to 1024 or less"),
        (["+data.preference.val_files=[ONE_SIDE]"], "desirable or undesirable rows alone are left"),
        (["+data.preference.keep_pairs=true", "+data.preference.files=[UNPAIRED]"], "is not half of a pair"),
    ],
)
def test_what_f_hal_refuses_is_named(stock_config, inputs, preferences, tmp_path, overrides, words):
    one_side = tmp_path / "one_side.jsonl"
    one_side.write_text('{"prompt": "p", "completion": "a", "label": true}\n')
    unpaired = tmp_path / "unpaired.jsonl"
    row = '{{"prompt": "p{0}", "completion": "a{0}", "label": {1}}}\n'
    unpaired.write_text("".join(row.format(i, ("true", "false")[i % 2]) for i in range(2048)))
    overrides = [item.replace("ONE_SIDE", str(one_side)).replace("UNPAIRED", str(unpaired)) for item in overrides]
    given = [] if any("preference.files" in item for item in overrides) else [preferences]
    config = stock_config(*inputs, HAL, *given, *overrides)
    with pytest.raises(ValueError) as error:
        complete(config)
    assert words in str(error.value)


def test_the_group_for_a_cpu_needs_the_platform(stock_config, inputs, monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM")
    with pytest.raises(ValueError, match=r"trainer.device=cpu without VERL_PLATFORM=cpu .* set VERL_PLATFORM=cpu"):
        complete(stock_config(*inputs, "+fgrpo=cpu", SWITCH))
