"""The one switch: fill in what ``algorithm.adv_estimator=f_grpo`` or ``f_hal`` implies, and check the rest.

Everything that is set is printed, everything that is refused ends in one sentence, before Ray starts.
"""

import importlib
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.contract import APPLIED, F_GRPO, F_HAL, LOSS, REFUSED, VALIDATED
from fgrpo_plugin.host.settings.batches import check_micro_batches
from fgrpo_plugin.host.settings.determinism import check_determinism, deterministic_settings
from fgrpo_plugin.host.settings.f_divergence import nominal_coefficients
from fgrpo_plugin.host.settings.inputs import check_model_input, run_tokenizer
from fgrpo_plugin.host.settings.kinds import check_kinds, naming_what_cannot_be_read
from fgrpo_plugin.host.settings.preferences import check_preference_batch, check_preferences
from fgrpo_plugin.host.settings.prompts import check_prompts
from fgrpo_plugin.host.settings.reading import generates, recomputes_old_log_prob
from fgrpo_plugin.host.settings.refusals import check_settings
from fgrpo_plugin.host.settings.releases import check_release
from fgrpo_plugin.host.settings.tracking import check_trackers, missing_account
from fgrpo_plugin.host.settings.trainer_mode import check_trainer_mode
from fgrpo_plugin.host.settings.verls_own import check_by_verl

OURS = "fgrpo_plugin.host.worker.loss_section.FDivergencePolicyLossConfig"
ACTOR = "actor_rollout_ref.actor"
OFFLINE = "fgrpo_plugin.host.driver.offline"


def complete(config: DictConfig) -> None:
    """Fill in what ``algorithm.adv_estimator=f_grpo`` or ``f_hal`` implies, in place, and check the rest.

    Args:
        config: the composed configuration of ``verl.trainer.main_ppo``.

    Raises:
        ValueError: a sentence naming the setting and the remedy.
    """
    with naming_what_cannot_be_read():
        _complete(config)


def _complete(config: DictConfig) -> None:
    importlib.import_module("verl.trainer.ppo.v1")  # verl does so in its task runner alone, too late to refuse
    if REFUSED:
        raise ValueError(" ".join(REFUSED.values()))
    check_kinds(config)
    check_trainer_mode(config)
    settings, changes = check_and_fill_in(config)
    check_trackers(config)
    check_model_input(config)
    tokenizer = run_tokenizer(config)
    if generates(config, settings):
        check_prompts(config, tokenizer)
    if settings.constant_lam != 0:
        check_preferences(config, tokenizer)
    _report(config.algorithm.adv_estimator, settings, changes)
    if said := missing_account(config):
        say(f"fgrpo-plugin: {said}")


def check_and_fill_in(config: DictConfig) -> tuple[FDivergenceConfig, list[tuple[str, Any, str]]]:
    """Check and fill in what the configuration alone decides, by our rules and verl's own; no file is read.

    Returns:
        The hyper-parameters, and what was set: each key, its value and why.

    Raises:
        ValueError: a sentence naming the setting and the remedy.
    """
    settings = check_settings(config)
    check_release(config, rolls_out=generates(config, settings))
    if generates(config, settings):
        check_determinism(config)
    if settings.constant_lam != 0:
        check_preference_batch(config, settings)
    else:
        check_micro_batches(config, recomputes_old_log_prob=recomputes_old_log_prob(settings))
    changes = _fill_in(config, settings)
    check_by_verl(config)
    return settings, changes


def _fill_in(config: DictConfig, settings: FDivergenceConfig) -> list[tuple[str, Any, str]]:
    """Set what the estimator implies, in place: each key, its value and why."""
    estimator = config.algorithm.adv_estimator
    changes: list[tuple[str, Any, str]] = []

    def fill(key: str, value: Any, reason: str) -> None:
        if OmegaConf.select(config, key) != value:
            with open_dict(config):
                OmegaConf.update(config, key, value, force_add=True)
            changes.append((key, value, reason))

    if estimator == F_HAL and settings.constant_lam == 0:
        fill(f"{LOSS}.loss_mode", F_GRPO, "lambda is 0 throughout: no preference rows are drawn or joined")
    else:
        fill(f"{LOSS}.loss_mode", estimator, "the loss that belongs to this estimator")
    fill(f"{LOSS}._target_", OURS, "the typed section that holds f_divergence")
    fill("actor_rollout_ref.rollout.calculate_log_probs", True, "log pi_old comes from the rollout")
    if recomputes_old_log_prob(settings):
        why = "gamma != 0 with several optimiser steps or stale rollouts needs log pi_old from the actor"
        fill("algorithm.rollout_correction.bypass_mode", False, why)
    else:
        why = "nothing needs the actor's own old log-probs: the extra forward pass is saved"
        fill("algorithm.rollout_correction.bypass_mode", True, why)
    checks = f"{ACTOR}.megatron.override_ddp_config.check_for_nan_in_grad"
    half = OmegaConf.select(config, f"{ACTOR}.megatron.dtype") == "float16"  # whose scale is found by overflows
    if config.actor_rollout_ref.actor.strategy == "megatron" and OmegaConf.select(config, checks) is None and not half:
        fill(checks, True, "Megatron steps with a gradient that is not finite unless it looks before")
    if not generates(config, settings):
        why = "lambda is 1 throughout: nothing is rolled out, and prompts are not read"
        fill("actor_rollout_ref.rollout.agent.agent_loop_manager_class", f"{OFFLINE}.NoRollouts", why)
        fill("data.custom_cls.path", f"pkg://{OFFLINE}", why)
        fill("data.custom_cls.name", "NoPrompts", why)
        if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
            fill("actor_rollout_ref.rollout.name", "vllm", "verl wants a name; no engine is started")
        if not OmegaConf.select(config, "actor_rollout_ref.rollout.nnodes"):
            fill("actor_rollout_ref.rollout.nnodes", 1, "verl wants a number; no engine is started")
    for key, value, why in deterministic_settings(config) if generates(config, settings) else ():
        fill(key, value, why)
    with open_dict(config):
        OmegaConf.update(config, f"{LOSS}.f_divergence", asdict(settings), force_add=True)
        config.algorithm[VALIDATED] = True
    return changes


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
    lines.append("fgrpo-plugin: shims: " + ", ".join(f"{shim} {state}" for shim, state in sorted(APPLIED.items())))
    say("\n".join(lines))
