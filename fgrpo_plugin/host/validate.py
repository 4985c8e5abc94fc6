"""The one switch: completes the host's configuration for ``algorithm.adv_estimator=f_grpo`` or ``f_hal``, and refuses
contradictions.

Everything that is set is printed, everything that is refused ends in one sentence, before Ray starts.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.metric_table import PREFIX
from fgrpo_plugin.host.parallel import STRATEGIES, check_micro_batches, check_parallel_sizes
from fgrpo_plugin.host.settings.inputs import check_data_file, check_model
from fgrpo_plugin.host.shims import APPLIED, REFUSED

ESTIMATORS = ("f_grpo", "f_hal")
DEFAULT_LAM = 0.5
VALIDATED = "f_divergence_validated"  # under `algorithm`, which the estimator sees too
LOSS = "actor_rollout_ref.actor.policy_loss"
ENGINES = ("fsdp_config", "megatron", "veomni")
OURS = "fgrpo_plugin.host.config.FDivergencePolicyLossConfig"
OFFLINE = "fgrpo_plugin.host.offline"
FILES = ("files", "val_files")

ACTOR_SETTINGS = {
    "clip_ratio, clip_ratio_low, clip_ratio_high, clip_ratio_c": "ignored: f-GRPO has no importance ratio to clip",
    "loss_agg_mode, loss_scale_factor": "ignored by f-GRPO's loss (own row counts); used by KL and entropy terms",
    "entropy_coeff": "honoured: added to the loss; sees on-policy rows only",
    "use_kl_loss, kl_loss_coef": "honoured: added to the loss, beside our own reference term; sees on-policy rows only",
    "ppo_epochs": "honoured: rows are repeated; above 1 the rollout's log-probs are not compared with the actor's",
    "ppo_mini_batch_size": "honoured: a loss is normalised within its mini-batch",
    "shuffle": "refused: the driver must know each row's mini-batch",
    "algorithm.use_kl_in_reward": "refused: f-GRPO holds its own regulariser towards the reference (beta)",
    "algorithm.rollout_correction.rollout_is, rollout_rs": "refused: they correct a ratio that f-GRPO does not use",
}
"""What f-GRPO does with each setting of the host's actor; the README's table is this one."""


def is_f_divergence(config: Any) -> bool:
    """Whether the run asks for an algorithm of this package."""
    return OmegaConf.select(config, "algorithm.adv_estimator") in ESTIMATORS


def uses_our_loss(config: Any) -> bool:
    """Whether the run asks for our loss or its settings."""
    return OmegaConf.select(config, f"{LOSS}.loss_mode") in ESTIMATORS or (
        OmegaConf.select(config, f"{LOSS}.f_divergence") is not None
    )


def joins_preferences(config: Any) -> bool:
    """Whether a validated run trains on preference rows: f-HAL with any lambda but a constant 0."""
    return config.algorithm.adv_estimator == "f_hal" and OmegaConf.select(config, f"{LOSS}.f_divergence.lam") != 0


def is_offline(config: Any) -> bool:
    """Whether a validated run trains on preference rows alone: f-HAL with a constant lambda of 1."""
    return config.algorithm.adv_estimator == "f_hal" and OmegaConf.select(config, f"{LOSS}.f_divergence.lam") == 1


def require_validated(algorithm: Any) -> None:
    """Raise unless ``complete`` has seen this configuration.

    Args:
        algorithm: the host's ``algorithm`` section.
    """
    if not algorithm.get(VALIDATED, False):
        name = algorithm.get("adv_estimator", "f_grpo")
        raise ValueError(
            f"algorithm.adv_estimator={name} reached a trainer without validation: its only entry point is "
            "`python -m verl.trainer.main_ppo` with trainer.use_v1=true."
        )


def check_settings(config: DictConfig) -> FDivergenceConfig:
    """What can be refused by the settings alone: no file is read, and rows are not counted.

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
    settings = f_divergence_settings(config)
    _refuse_contradictions(config, offline=estimator == "f_hal" and settings.constant_lam == 1)
    check_parallel_sizes(config)
    if estimator == "f_grpo" and any(OmegaConf.select(config, f"data.preference.{name}") for name in FILES):
        raise ValueError(
            "data.preference names files, which algorithm.adv_estimator=f_grpo does not read; set "
            "algorithm.adv_estimator=f_hal, or remove them."
        )
    return settings


def complete(config: DictConfig) -> None:
    """Fill in what ``algorithm.adv_estimator=f_grpo`` or ``f_hal`` implies, in place, and check the rest.

    Args:
        config: the composed configuration of ``verl.trainer.main_ppo``.

    Raises:
        ValueError: a sentence naming the setting and the remedy.
    """
    importlib.import_module("verl.trainer.ppo.v1")  # the host does so in its task runner alone, too late to refuse
    if REFUSED:
        raise ValueError(" ".join(REFUSED.values()))
    settings = check_settings(config)
    estimator = config.algorithm.adv_estimator
    offline = estimator == "f_hal" and settings.constant_lam == 1
    generates = not offline or bool(OmegaConf.select(config, "data.preference.keep_rollout", default=False))
    _check_inputs(config, prompts=generates)
    if estimator == "f_hal" and settings.constant_lam != 0:
        from fgrpo_plugin.host.preferences import check_preferences

        check_preferences(config, settings)
    else:
        check_micro_batches(config)

    changes: list[tuple[str, Any, str]] = []

    def fill(key: str, value: Any, reason: str) -> None:
        if OmegaConf.select(config, key) != value:
            with open_dict(config):
                OmegaConf.update(config, key, value, force_add=True)
            changes.append((key, value, reason))

    if estimator == "f_hal" and settings.constant_lam == 0:
        fill(f"{LOSS}.loss_mode", "f_grpo", "lambda is 0 throughout: no preference rows are drawn or joined")
    else:
        fill(f"{LOSS}.loss_mode", estimator, "the loss that belongs to this estimator")
    fill(f"{LOSS}._target_", OURS, "the typed section that holds f_divergence")
    fill("actor_rollout_ref.rollout.calculate_log_probs", True, "log pi_old comes from the rollout")
    if settings.gamma == 0 or settings.old_log_prob == "current":
        why = "nothing needs the actor's own old log-probs: the extra forward pass is saved"
        fill("algorithm.rollout_correction.bypass_mode", True, why)
    else:
        why = "gamma != 0 with several optimiser steps or stale rollouts needs log pi_old from the actor"
        fill("algorithm.rollout_correction.bypass_mode", False, why)
    if not generates:
        why = "lambda is 1 throughout: nothing is rolled out, and prompts are not read"
        fill("actor_rollout_ref.rollout.agent.agent_loop_manager_class", f"{OFFLINE}.NoRollouts", why)
        fill("data.custom_cls.path", f"pkg://{OFFLINE}", why)
        fill("data.custom_cls.name", "NoPrompts", why)
        if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
            fill("actor_rollout_ref.rollout.name", "vllm", "the host wants a name; no engine is started")
        if not OmegaConf.select(config, "actor_rollout_ref.rollout.nnodes"):
            fill("actor_rollout_ref.rollout.nnodes", 1, "the host wants a number; no engine is started")
    with open_dict(config):
        OmegaConf.update(config, f"{LOSS}.f_divergence", asdict(settings), force_add=True)
        config.algorithm[VALIDATED] = True
    _report(estimator, settings, changes)


def _refuse_contradictions(config: DictConfig, offline: bool) -> None:
    name = config.algorithm.adv_estimator
    select: Callable[..., Any] = lambda key, default=None: OmegaConf.select(config, key, default=default)  # noqa: E731
    actor = "actor_rollout_ref.actor"
    sync = select("trainer.v1.separate_async.parameter_sync_step", 1)
    replay = [select(f"{actor}.{engine}.router_replay.mode", "disabled") for engine in ENGINES]
    refused = [
        (not select("trainer.use_v1", True), "trainer.use_v1=false", f"{name} runs in the v1 trainer; set it to true"),
        (
            select("algorithm.use_kl_in_reward"),
            "algorithm.use_kl_in_reward=true",
            f"{name} holds its own regulariser towards the reference (beta); set it to false",
        ),
        (
            not offline and select("actor_rollout_ref.rollout.n", 1) < 2,
            f"actor_rollout_ref.rollout.n={select('actor_rollout_ref.rollout.n')}",
            "a group needs at least 2 answers a prompt to have a mean to compare with; set it to 4 or more",
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
            f"{name} compares answers within a group and reads no value function; remove it",
        ),
        (
            select("model_engine", "dp") not in STRATEGIES,
            f"model_engine={select('model_engine')}",
            f"{name} has not been tried with this engine; choose one of {', '.join(STRATEGIES)}",
        ),
        (
            select(f"{actor}.strategy") not in (strategies := STRATEGIES.get(select("model_engine", "dp"), ())),
            f"{actor}.strategy={select(f'{actor}.strategy')} with model_engine={select('model_engine')}",
            f"the host would run the latter; choose {' or '.join(strategies)}, or another model_engine",
        ),
        (
            select("trainer.v1.trainer_mode") == "separate_async"
            and select("data.train_batch_size") != sync * select(f"{actor}.ppo_mini_batch_size"),
            f"data.train_batch_size={select('data.train_batch_size')} in the mode separate_async",
            f"set it to trainer.v1.separate_async.parameter_sync_step={sync} x {actor}.ppo_mini_batch_size",
        ),
        (
            select("trainer.device") == "cpu" and os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu",
            "trainer.device=cpu without VERL_PLATFORM=cpu",
            "the host would look for GPUs; set VERL_PLATFORM=cpu in the environment, or remove the group +fgrpo=cpu",
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
            "+fgrpo=cpu with algorithm.filter_groups.enable or trainer.v1.trainer_mode other than sync",
            "its replay buffer does neither; set trainer.v1.sampler.custom_sampler.path and .name to null",
        ),
        (
            str(select(f"{LOSS}.loss_mode", "vanilla")) not in ("vanilla", *ESTIMATORS),
            f"{LOSS}.loss_mode={select(f'{LOSS}.loss_mode')}",
            f"algorithm.adv_estimator={name} selects its own loss; remove the setting",
        ),
    ]
    if offline:
        refused += _offline_contradictions(select)
    for wrong, setting, remedy in refused:
        if wrong:
            raise ValueError(f"{setting} contradicts algorithm.adv_estimator={name}: {remedy}.")


def _offline_contradictions(select: Callable[..., Any]) -> list[tuple[Any, str, str]]:
    """What cannot be where lambda is 1 throughout: whatever reads on-policy rows."""
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


def _check_inputs(config: DictConfig, *, prompts: bool) -> None:
    model = OmegaConf.select(config, "actor_rollout_ref.model.path")
    tokenizer = OmegaConf.select(config, "actor_rollout_ref.model.tokenizer_path")
    if model is not None:
        check_model(str(model), "actor_rollout_ref.model.path", tokenizer=tokenizer is None)
    if not prompts or OmegaConf.select(config, "data.custom_cls.path") is not None:
        return  # the user's own data set class reads what it likes
    columns = [str(OmegaConf.select(config, "data.prompt_key", default="prompt"))]
    for key in ("data.train_files", "data.val_files"):
        files = OmegaConf.select(config, key)
        for file in [files] if isinstance(files, str) else files or []:
            check_data_file(file, columns, key)


def f_divergence_settings(config: DictConfig) -> FDivergenceConfig:
    given = OmegaConf.select(config, f"{LOSS}.f_divergence")
    values: dict[str, Any] = OmegaConf.to_container(given, resolve=True) if given is not None else {}  # type: ignore
    f_hal = config.algorithm.adv_estimator == "f_hal"
    if f_hal and values.get("lam") is None:
        values["lam"] = DEFAULT_LAM
    known = [field.name for field in fields(FDivergenceConfig)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{LOSS}.f_divergence.{unknown[0]} is not known; choose among {', '.join(known)}.")
    try:
        settings = FDivergenceConfig(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{LOSS}.f_divergence.{error}") from error
    if not f_hal and settings.lam != 0:
        raise ValueError(
            f"{LOSS}.f_divergence.lam={settings.lam} needs preference data, which algorithm.adv_estimator=f_grpo does "
            "not read; set algorithm.adv_estimator=f_hal, or remove lam."
        )
    settings.old_log_prob = "current" if _one_step_on_fresh_rollouts(config) else "recomputed"
    if settings.preference_gamma and settings.old_log_prob != "current":
        raise ValueError(
            f"{LOSS}.f_divergence.preference_gamma={settings.preference_gamma} takes the current policy for pi_old, "
            "which holds for one optimiser step on fresh rollouts alone; set it to 0, or actor.ppo_mini_batch_size to "
            "data.train_batch_size with ppo_epochs=1 in trainer mode sync."
        )
    return settings


def _one_step_on_fresh_rollouts(config: DictConfig) -> bool:
    """Whether the actor is pi_old itself when its loss is computed."""
    actor = config.actor_rollout_ref.actor
    return (
        config.trainer.v1.trainer_mode == "sync"
        and OmegaConf.select(config, "trainer.v1.sync.parameter_sync_step", default=1) == 1
        and actor.ppo_epochs == 1
        and actor.ppo_mini_batch_size >= config.data.train_batch_size
    )


def nominal_coefficients(settings: FDivergenceConfig) -> str:
    """What multiplies each half of the minimised loss, said to be nominal: slopes, weights and gamma are not in it."""
    s_all, s_on = settings.scales()
    lam = settings.constant_lam
    on_policy, preference = (
        (f"(1 - lambda) x {s_all * s_on:g}", f"lambda x {s_all:g}")
        if lam is None
        else (f"{(1 - lam) * s_all * s_on:g}", f"{lam * s_all:g}")
    )
    return (
        f"nominal coefficients: on-policy loss {on_policy}, preference loss {preference}; how hard each half really "
        f"pulls is logged as {PREFIX}on_policy_slope and preference_slope"
    )


def _report(estimator: str, settings: FDivergenceConfig, changes: list[tuple[str, Any, str]]) -> None:
    lines = [f"fgrpo-plugin: algorithm.adv_estimator={estimator} set {len(changes)} values:"]
    lines += [f"  {key}={value}  ({reason})" for key, value, reason in changes]
    if settings.preset != "stable":
        lines.append(
            f"fgrpo-plugin: preset={settings.preset}: since 0.2.0 it sets gamma, scale and weights "
            "(docs/assumptions.md); the former preset=paper is stable, the former released is stable with gamma=1, and "
            "checkpoints of an earlier version under this trainer.experiment_name are of another loss"
        )
    elif settings.scale == "paper":
        lines.append(
            "fgrpo-plugin: scale=paper: since 0.2.0 it multiplies the on-policy loss by (1+beta)/(beta+gamma); before, "
            "it divided it by 1+1/beta, which is scale=[1, 1/(1+1/beta)]"
        )
    lines.append(f"fgrpo-plugin: {nominal_coefficients(settings)}")
    lines.append("fgrpo-plugin: f_divergence " + ", ".join(f"{k}={v}" for k, v in asdict(settings).items()))
    lines.append("fgrpo-plugin: settings of actor_rollout_ref.actor under f-GRPO:")
    lines += [f"  {key}: {meaning}" for key, meaning in ACTOR_SETTINGS.items()]
    lines.append("fgrpo-plugin: shims: " + ", ".join(f"{shim} {state}" for shim, state in sorted(APPLIED.items())))
    print("\n".join(lines), flush=True)
