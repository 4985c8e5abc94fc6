"""The section ``policy_loss.f_divergence``: from what is given to hyper-parameters, and what they come to."""

from dataclasses import replace

from omegaconf import DictConfig

from fgrpo_plugin.config import DEFAULT_LAM, FDivergenceConfig
from fgrpo_plugin.host.contract import F_HAL, LOSS, PREFIX
from fgrpo_plugin.host.settings.reading import may_be_stale, section_values


def f_divergence_settings(config: DictConfig) -> FDivergenceConfig:
    """Read and check the hyper-parameters, with the default lambda of f-HAL and the source of log pi_old filled in.

    Raises:
        ValueError: an unknown key or a bad value; the message names it and the remedy.
    """
    values = section_values(config, f"{LOSS}.f_divergence")
    f_hal = config.algorithm.adv_estimator == F_HAL
    if f_hal and values.get("lam") is None:
        values["lam"] = DEFAULT_LAM
    try:
        settings = FDivergenceConfig(**values)
    except ValueError as error:
        raise ValueError(f"{LOSS}.f_divergence.{error}") from error
    if not f_hal and settings.lam != 0:
        raise ValueError(
            f"{LOSS}.f_divergence.lam={settings.lam!s:.200} needs preference data, which "
            "algorithm.adv_estimator=f_grpo does not read; set algorithm.adv_estimator=f_hal, or remove lam."
        )
    settings = replace(settings, old_log_prob="current" if _one_step_on_fresh_rollouts(config) else "recomputed")
    if settings.preference_gamma and settings.old_log_prob != "current":
        raise ValueError(
            f"{LOSS}.f_divergence.preference_gamma={settings.preference_gamma} takes the current policy for pi_old, "
            "which holds for one optimiser step on fresh rollouts alone; set it to 0, or actor.ppo_mini_batch_size to "
            "data.train_batch_size with ppo_epochs=1 in trainer mode sync."
        )
    return settings


def _one_step_on_fresh_rollouts(config: DictConfig) -> bool:
    """Return whether the actor is pi_old itself when its loss is computed."""
    actor = config.actor_rollout_ref.actor
    return (
        not may_be_stale(config) and actor.ppo_epochs == 1 and actor.ppo_mini_batch_size >= config.data.train_batch_size
    )


def nominal_coefficients(settings: FDivergenceConfig) -> str:
    """Return each half's factor in the minimised loss; nominal, since slopes, weights and gamma are not in it."""
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
