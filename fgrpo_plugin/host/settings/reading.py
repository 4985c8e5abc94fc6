"""Read what a run's configuration asks for: used by the shims, the driver and the workers."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import ESTIMATORS, F_GRPO, F_HAL, LOSS, VALIDATED


def is_f_divergence(config: Any) -> bool:
    """Return whether the run asks for an algorithm of this package."""
    return OmegaConf.select(config, "algorithm.adv_estimator") in ESTIMATORS


def uses_our_loss(config: Any) -> bool:
    """Return whether the run asks for our loss or its settings."""
    return OmegaConf.select(config, f"{LOSS}.loss_mode") in ESTIMATORS or (
        OmegaConf.select(config, f"{LOSS}.f_divergence", throw_on_resolution_failure=False) is not None
    )


def section_values(config: Any, name: str) -> dict[str, Any]:
    """Return what a section of this package sets, ``policy_loss.f_divergence`` or ``data.preference``, or {}.

    Args:
        config: verl's whole configuration.
        name: the section's full name.

    Raises:
        ValueError: it is no section, holds ``???``, or a ``${...}`` that leads nowhere; names the key and the remedy.
    """
    try:
        section = OmegaConf.select(config, name, throw_on_missing=True)
        if section is None:
            return {}
        if isinstance(section, DictConfig):
            values: Any = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
            return {str(key): value for key, value in values.items()}
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key or name}=??? has no value yet; set it, or remove it.") from None
    except Exception as error:  # of OmegaConf, or of a resolver
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        key = getattr(error, "full_key", None) or name
        raise ValueError(
            f"{key} cannot be read ({reason:.200}); correct the ${{...}} in it, or write the value itself."
        ) from None
    shown = " ".join(str(section).split())
    raise ValueError(f"{name}={shown:.200} must be a section; write ++{name}.<setting>=<value>.")


def joins_preferences(config: Any) -> bool:
    """Return whether a validated run trains on preference rows: f-HAL with any lambda but a constant 0."""
    return config.algorithm.adv_estimator == F_HAL and OmegaConf.select(config, f"{LOSS}.f_divergence.lam") != 0


def is_offline(config: Any) -> bool:
    """Return whether a validated run trains on preference rows alone: f-HAL with a constant lambda of 1."""
    return config.algorithm.adv_estimator == F_HAL and OmegaConf.select(config, f"{LOSS}.f_divergence.lam") == 1


def may_be_stale(config: Any) -> bool:
    """Return whether rollouts may come from weights of before the last update."""
    mode = config.trainer.v1.trainer_mode
    return mode != "sync" or OmegaConf.select(config, f"trainer.v1.{mode}.parameter_sync_step", default=1) != 1


def generates(config: Any, settings: FDivergenceConfig) -> bool:
    """Return whether a rollout engine is started: under f_grpo lambda is 0, any other being refused."""
    return settings.constant_lam != 1 or bool(section_values(config, "data.preference").get("keep_rollout"))


def recomputes_old_log_prob(settings: FDivergenceConfig) -> bool:
    """Return whether the actor computes log pi_old of the rollouts by a pass of its own."""
    return settings.gamma != 0 and settings.old_log_prob != "current"


def require_validated(algorithm: Any) -> None:
    """Raise unless ``complete`` has seen this configuration.

    Args:
        algorithm: verl's ``algorithm`` section.
    """
    if not algorithm.get(VALIDATED, False):
        name = algorithm.get("adv_estimator", F_GRPO)
        raise ValueError(
            f"algorithm.adv_estimator={name} reached a trainer without validation: its only entry point is "
            "`python -m verl.trainer.main_ppo` with trainer.use_v1=true."
        )


def read_settings(section: Mapping[str, Any]) -> FDivergenceConfig:
    """The hyper-parameters from a configuration section (a mapping or an OmegaConf node)."""
    values = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    return FDivergenceConfig(**values)  # type: ignore[arg-type]


@contextlib.contextmanager
def workers_environment(config: Any) -> Iterator[None]:
    """The variables that the run's workers will have, for a while: for importing here what they import."""
    before = dict(os.environ)
    given = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    values = {str(name): str(value) for name, value in given.items()}
    os.environ.update(values)
    # Python has read this variable when it started.
    paths = [path for path in values.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[1:1] = paths
    try:
        yield
    finally:
        for path in paths:
            if path in sys.path:
                sys.path.remove(path)
        for name in values:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
