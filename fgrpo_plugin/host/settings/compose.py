"""verl's configuration: composed from overrides as ``main_ppo`` does, and what is set in it that verl does not know."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.host.settings.reading import is_f_divergence

FREE_FORM = (  # sections that verl hands on as they are or reads without a default, or that this package reads
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.",
    "actor_rollout_ref.actor.megatron.override_transformer_config.",
    "actor_rollout_ref.actor.policy_loss.f_divergence.",
    "actor_rollout_ref.model.override_config.",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision.",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.rollout.engine_kwargs.",
    "data.preference.",
    "ray_kwargs.ray_init.",
    "reward.custom_reward_function.reward_kwargs.",
)


def compose(overrides: list[str]) -> Any:
    """verl's configuration with these overrides, as ``python -m verl.trainer.main_ppo`` composes it.

    Raises:
        ValueError: one sentence: Hydra's, or where its remedy would lead astray, ours.
    """
    import verl  # noqa: F401  (loads the plugin, which offers the config groups)
    from hydra import compose as compose_by_hydra
    from hydra import initialize_config_module
    from hydra.errors import HydraException

    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose_by_hydra("ppo_trainer", overrides=overrides)
    except HydraException as error:
        raise ValueError(_sentence(" ".join(str(error).split()), overrides)) from None


def _sentence(hydras: str, overrides: list[str]) -> str:
    if group := re.search(r"Could not (?:find|load) 'fgrpo/(.+?)'", hydras):
        known = sorted(file.name[:-5] for file in files("fgrpo_plugin.conf.fgrpo").iterdir() if ".yaml" in file.name)
        return f"+fgrpo={group[1]} is not known; choose among {', '.join(known)}."
    setting = re.search(r"Could not override '(.+?)'\. To append to your config use", hydras)
    if setting and not setting[1].startswith(FREE_FORM):
        groups = [word for word in overrides if word.lstrip("+").split("=")[0] in ("fgrpo", "model_engine")]
        return describe_unknown(setting[1], compose(groups).model_engine)
    return hydras.split(" Config search path:")[0]


@cache
def host_defaults(engine: str) -> Any:
    """verl's own configuration.

    Args:
        engine: its ``model_engine``.
    """
    return compose([f"model_engine={engine}"])


def unknown_settings(config: Any) -> list[str]:
    """Return what is set in a composed configuration that verl does not know; Hydra checks neither groups nor "+"."""
    known = set(_leaves(host_defaults(config.model_engine)))
    return [
        name
        for name in dict.fromkeys(_leaves(config))
        if not f"{name}.".startswith(FREE_FORM) and not known.intersection(_with_sections(name))
    ]


def describe_unknown(name: str, engine: str) -> str:
    """A sentence about a setting that verl does not know, with those that were probably meant."""
    for other in {"dp", "megatron"} - {engine}:
        if name in _leaves(host_defaults(other)):
            return f"{name} belongs to model_engine={other}; this run has model_engine={engine}."
    known = list(_leaves(host_defaults(engine)))
    section, _, last = name.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    near = [beside[close] for close in get_close_matches(last, beside)] or get_close_matches(name, known, cutoff=0.8)
    remedy = f"nearest: {', '.join(near)}" if near else "`python -m verl.trainer.main_ppo --cfg job` prints them"
    return f"{name} is not a setting of verl with model_engine={engine}; {remedy}."


def _leaves(config: Any, at: str = "") -> Iterator[str]:
    """Dotted names of everything that is set."""
    items: Any = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    for key, value in items.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def _with_sections(name: str) -> list[str]:
    """A setting and the sections around it: what is empty in verl may be filled with anything."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def check_overrides(overrides: list[str]) -> None:
    """Compose verl's configuration with these overrides and complete it as ``main_ppo`` would.

    Raises:
        ValueError: one sentence, the composition's or ours.
    """
    from fgrpo_plugin.host.settings.switch import complete

    config = compose(overrides)
    if is_f_divergence(config):
        complete(config)
