"""What contradicts f-GRPO and f-HAL in verl's configuration, refused by name with the remedy: add a refusal here.

A bad value of our own is refused where it is read (config.py, preference/config.py, f_divergence.py), sizes that do not
go together in layout.py, files and models in inputs.py and preferences.py.
"""

import os
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import ESTIMATORS, F_GRPO, LOSS
from fgrpo_plugin.host.settings.counts import LORA, check_counts
from fgrpo_plugin.host.settings.f_divergence import f_divergence_settings
from fgrpo_plugin.host.settings.layout import (
    STRATEGIES,
    check_parallel_sizes,
    lora_key,
    reference_is_in_actor,
    uses_lora,
)
from fgrpo_plugin.host.settings.reading import generates, is_f_divergence, section_values
from fgrpo_plugin.pinned import VERL

ENGINES = ("fsdp_config", "megatron", "veomni")
FILES = ("files", "val_files")

ACTOR_SETTINGS = {
    "clip_ratio, clip_ratio_low, clip_ratio_high, clip_ratio_c": "ignored: f-GRPO has no importance ratio to clip",
    "loss_agg_mode, loss_scale_factor": "ignored by f-GRPO's loss (own denominators); used by KL and entropy terms",
    "entropy_coeff": "honoured: added to the loss; sees on-policy rows only",
    "use_kl_loss, kl_loss_coef": "honoured: added to the loss, beside our own reference term; sees on-policy rows only",
    "ppo_epochs": "honoured: rows are repeated; above 1 the rollout's log-probs are not compared with the actor's",
    "ppo_mini_batch_size": "honoured: a loss is normalised within its mini-batch",
    "shuffle": "refused: the driver must know each row's mini-batch",
    "algorithm.use_kl_in_reward": "refused: f-GRPO holds its own regulariser towards the reference (beta)",
    "algorithm.rollout_correction.rollout_is, rollout_rs": "refused: they correct a ratio that f-GRPO does not use",
}
"""What f-GRPO does with each setting of verl's actor; the table of docs/settings.md is this one."""


def check_settings(config: DictConfig) -> FDivergenceConfig:
    """Refuse what the settings alone contradict: no file is read, and rows are not counted.

    Args:
        config: the composed configuration of ``verl.trainer.main_ppo``.

    Raises:
        ValueError: a sentence naming the setting and the remedy.
    """
    if not is_f_divergence(config):
        raise ValueError(
            f"{LOSS} asks for f-GRPO but algorithm.adv_estimator={config.algorithm.adv_estimator}; "
            "set algorithm.adv_estimator=f_grpo or f_hal, or remove the policy_loss settings."
        )
    estimator = config.algorithm.adv_estimator
    check_counts(config)
    settings = f_divergence_settings(config)
    preference = section_values(config, "data.preference")
    _refuse_contradictions(config, settings)
    check_parallel_sizes(config, generates(config, settings))
    if estimator == F_GRPO and any(preference.get(name) for name in FILES):
        raise ValueError(
            "data.preference names files, which algorithm.adv_estimator=f_grpo does not read; set "
            "algorithm.adv_estimator=f_hal, or remove them."
        )
    return settings


def _refuse_contradictions(config: DictConfig, settings: FDivergenceConfig) -> None:
    """Raise for the first row of the table that holds.

    Args:
        config: the composed configuration.
        settings: of the loss.
    """
    offline = settings.constant_lam == 1
    name = config.algorithm.adv_estimator
    select: Callable[..., Any] = lambda key, default=None: OmegaConf.select(config, key, default=default)  # noqa: E731
    actor = "actor_rollout_ref.actor"
    sync = select("trainer.v1.separate_async.parameter_sync_step", 1)
    rank = max(select(name) or 0 for name in LORA)
    replay = [select(f"{actor}.{engine}.router_replay.mode", "disabled") for engine in ENGINES]
    refused = [
        (not select("trainer.use_v1", True), "trainer.use_v1=false", f"{name} runs in the v1 trainer; set it to true"),
        (
            generates(config, settings) and not select("actor_rollout_ref.rollout.name"),
            "a missing actor_rollout_ref.rollout.name",
            "verl has no default for it; set it to vllm, or another that verl offers",
        ),
        (
            select("algorithm.use_kl_in_reward"),
            "algorithm.use_kl_in_reward=true",
            f"{name} holds its own regulariser towards the reference (beta); set it to false",
        ),
        (
            not offline and select("actor_rollout_ref.rollout.n", 1) < 2,
            f"actor_rollout_ref.rollout.n={select('actor_rollout_ref.rollout.n')}",
            "a group needs at least 2 responses a prompt to have a mean to compare with; set it to 4 or more",
        ),
        (select(f"{actor}.shuffle"), f"{actor}.shuffle=true", "the driver must know each row's mini-batch; set false"),
        (
            select("algorithm.rollout_correction.rollout_is") is not None
            or select("algorithm.rollout_correction.rollout_rs") is not None,
            "algorithm.rollout_correction.rollout_is / rollout_rs",
            f"they correct an importance ratio that {name} does not use; set both to null",
        ),
        (
            select("critic.enable"),
            "critic.enable=true",
            f"{name} compares responses within a group and reads no value function; remove it",
        ),
        (
            select("model_engine", "dp") not in STRATEGIES,
            f"model_engine={select('model_engine')}",
            f"{name} has not been tried with this engine; choose one of {', '.join(STRATEGIES)}",
        ),
        (
            select(f"{actor}.strategy") not in (strategies := STRATEGIES.get(select("model_engine", "dp"), ())),
            f"{actor}.strategy={select(f'{actor}.strategy')} with model_engine={select('model_engine')}",
            f"verl would run the latter; choose {' or '.join(strategies)}, or another model_engine",
        ),
        (
            select("trainer.v1.trainer_mode") == "separate_async"
            and select("data.train_batch_size") != sync * select(f"{actor}.ppo_mini_batch_size"),
            f"data.train_batch_size={select('data.train_batch_size')} in the mode separate_async",
            f"set it to trainer.v1.separate_async.parameter_sync_step={sync} x {actor}.ppo_mini_batch_size",
        ),
        (
            select("trainer.v1.trainer_mode") == "separate_async"
            and select("actor_rollout_ref.rollout.checkpoint_engine.backend") == "naive",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=naive in the mode separate_async",
            "it sends weights inside one process; set nccl, or another that verl offers",
        ),
        (
            select("trainer.v1.trainer_mode") == "separate_async"
            and select("reward.reward_model.enable")
            and not select("reward.reward_model.enable_resource_pool"),
            "reward.reward_model.enable_resource_pool=false in the mode separate_async",
            "verl serves no reward model on GPUs that never pause; set it to true",
        ),
        (
            # In its own modes on shared GPUs verl sends them inside a process, whatever is set.
            not offline
            and uses_lora(config)
            and select("trainer.v1.trainer_mode") not in ("sync", "colocate_async")
            and select("actor_rollout_ref.rollout.checkpoint_engine.backend", "naive") != "naive",
            f"LoRA with actor_rollout_ref.rollout.checkpoint_engine.backend="
            f"{select('actor_rollout_ref.rollout.checkpoint_engine.backend')}",
            f"verl {VERL} then sends the weights without the adapter, so that every rollout comes from the initial "
            "policy, without a word (its issue 7495); set actor_rollout_ref.model.lora.merge=true",
        ),
        (
            not offline
            and 0 < (select("actor_rollout_ref.rollout.max_model_len") or 0) <= select("data.max_prompt_length"),
            f"actor_rollout_ref.rollout.max_model_len={select('actor_rollout_ref.rollout.max_model_len')}",
            "a prompt of data.max_prompt_length tokens leaves no token for its response; raise it, or set it to null",
        ),
        (
            not offline and select("actor_rollout_ref.rollout.name") == "vllm" and uses_lora(config) and rank > 512,
            f"an adapter of rank {rank}",
            "vLLM takes ranks up to 512; set actor_rollout_ref.model.lora_rank to 512 or less, or "
            "actor_rollout_ref.model.lora.merge=true",
        ),
        (
            reference_is_in_actor(config) and not (select(lora_key(config)) or 0),
            f"LoRA without {lora_key(config)}",
            f"{select(f'{actor}.strategy')} makes an adapter of that key alone, and the reference is the actor without "
            "one; set it to the rank",
        ),
        (
            select("algorithm.filter_groups.enable") and not select("algorithm.filter_groups.metric"),
            "algorithm.filter_groups.enable=true without algorithm.filter_groups.metric",
            "verl filters by it; set it to reward, or to acc or another number that the reward function reports",
        ),
        (
            select("algorithm.filter_groups.enable")
            and select("reward.reward_model.enable")
            and not select("reward.reward_model.enable_resource_pool"),
            "algorithm.filter_groups.enable=true with a reward model on the training GPUs",
            "verl filters before that model has rewarded; set reward.reward_model.enable_resource_pool=true",
        ),
        (
            select("reward.reward_model.enable")
            and select("reward.reward_model.enable_resource_pool")
            and not ((select("reward.reward_model.n_gpus_per_node") or 0) > 0),
            "reward.reward_model.enable_resource_pool=true without GPUs",
            "set reward.reward_model.nnodes and reward.reward_model.n_gpus_per_node",
        ),
        (
            (select("trainer.critic_warmup") or 0) > 1 and not offline and not select("trainer.val_only"),
            f"trainer.critic_warmup={select('trainer.critic_warmup')}",
            "there is no critic, and verl would not update the actor before that step; set it to 0",
        ),
        (
            select("trainer.device") == "cpu" and os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu",
            "trainer.device=cpu without VERL_PLATFORM=cpu",
            "verl would look for GPUs; set VERL_PLATFORM=cpu in the environment, or remove the group +fgrpo=cpu",
        ),
        (select("distillation.enabled"), "distillation.enabled=true", "it replaces the policy loss; set it to false"),
        (
            any(mode != "disabled" for mode in replay),
            f"{actor}.*.router_replay.mode",
            f"{name} has not been tried with replayed routes; set it to disabled",
        ),
        (
            select(f"{actor}.use_prefix_grouper"),
            f"{actor}.use_prefix_grouper=true",
            f"{name} has not been tried with it; set it to false",
        ),
        (
            select("trainer.v1.sampler.custom_sampler.name") == "FastPollReplayBuffer"
            and (select("algorithm.filter_groups.enable") or select("trainer.v1.trainer_mode") != "sync"),
            "trainer.v1.sampler.custom_sampler.name=FastPollReplayBuffer with algorithm.filter_groups.enable or "
            "trainer.v1.trainer_mode other than sync",
            "that buffer does neither, and +fgrpo=cpu no longer names it; set custom_sampler.path and .name to null",
        ),
        (
            str(select(f"{LOSS}.loss_mode", "vanilla")) not in ("vanilla", *ESTIMATORS),
            f"{LOSS}.loss_mode={select(f'{LOSS}.loss_mode')}",
            f"algorithm.adv_estimator={name} selects its own loss; remove the setting",
        ),
    ]
    if offline:
        refused = _offline_contradictions(select) + refused
    for wrong, setting, remedy in refused:
        if wrong:
            raise ValueError(
                f"{setting} contradicts algorithm.adv_estimator={name}: {remedy} (`fgrpo settings` prints what becomes "
                "of verl's settings)."
            )


def _offline_contradictions(select: Callable[..., Any]) -> list[tuple[Any, str, str]]:
    """Return what cannot be where lambda is 1 throughout: whatever reads on-policy rows."""
    actor, preference = "actor_rollout_ref.actor", "data.preference"
    validates = select("trainer.val_before_train") or (select("trainer.test_freq") or -1) > 0
    generates = select(f"{preference}.keep_rollout", False)
    return [
        (
            select("trainer.v1.trainer_mode") != "sync",
            f"trainer.v1.trainer_mode={select('trainer.v1.trainer_mode')} with lam=1",
            "nothing is rolled out, so there is nothing to be asynchronous to; set it to sync",
        ),
        (
            select(f"{actor}.use_kl_loss") or select(f"{actor}.entropy_coeff") or select(f"{actor}.calculate_entropy"),
            f"{actor}.use_kl_loss, entropy_coeff or calculate_entropy with lam=1",
            "they see on-policy rows only, of which there are none; set them to false and 0",
        ),
        (
            select("reward.reward_model.enable"),
            "reward.reward_model.enable=true with lam=1",
            "nothing is rewarded; set it to false",
        ),
        (
            select("trainer.rollout_data_dir"),
            "trainer.rollout_data_dir with lam=1",
            "nothing is rolled out; remove it",
        ),
        (
            select("data.train_batch_size") % select(f"{actor}.ppo_mini_batch_size"),
            f"data.train_batch_size={select('data.train_batch_size')} with lam=1",
            f"it over {actor}.ppo_mini_batch_size is the number of optimiser steps in a training step; make it a "
            f"multiple of {select(f'{actor}.ppo_mini_batch_size')}",
        ),
        (
            validates and not generates and not select(f"{preference}.val_files"),
            "validation with lam=1",
            "without a rollout engine it is the accuracy on held-out preferences; name them in "
            "data.preference.val_files, set data.preference.keep_rollout=true to validate by generation, or set "
            "trainer.val_before_train=false and trainer.test_freq=-1",
        ),
    ]
