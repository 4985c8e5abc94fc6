"""What ``fgrpo doctor`` asks in fresh processes (is the plugin really attached, here and in a Ray worker?), and the
host's configuration.
"""

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

PREFIX = "PROBE"
FREE_FORM = (  # sections that the host hands on as they are or reads without a default, or that this package reads
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


def report_registration() -> None:
    """Print, as one JSON line, whether f-GRPO is registered and what became of each shim."""
    import verl.trainer.ppo.utils
    import verl.trainer.ppo.v1
    import verl.workers.utils.losses  # noqa: F401
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    from fgrpo_plugin.host.shims import APPLIED, REFUSED

    registered = "f_grpo" in ADV_ESTIMATOR_REGISTRY and "f_grpo" in POLICY_LOSS_REGISTRY
    print(PREFIX + json.dumps({"registered": registered, "applied": APPLIED, "refused": REFUSED}))


def report_ray_worker() -> None:
    """Start a local Ray and print whether one of its workers has f-GRPO registered."""
    import ray

    def look() -> bool:
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

        return "f_grpo" in POLICY_LOSS_REGISTRY

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    found = ray.get(ray.remote(look).remote())
    ray.shutdown()
    print(PREFIX + json.dumps(found))


def report_vllm() -> None:
    """Import vLLM as the host does and print its version."""
    import vllm
    from vllm import LLM  # noqa: F401

    print(PREFIX + json.dumps(vllm.__version__))


def compose(overrides: list[str]) -> Any:
    """The host's configuration with these overrides, as ``python -m verl.trainer.main_ppo`` composes it.

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
    """The host's own configuration.

    Args:
        engine: its ``model_engine``.
    """
    return compose([f"model_engine={engine}"])


def unknown_settings(config: Any) -> list[str]:
    """What is set in a composed configuration that the host does not know; Hydra checks neither groups nor "+"."""
    known = set(_leaves(host_defaults(config.model_engine)))
    return [
        name
        for name in dict.fromkeys(_leaves(config))
        if not name.startswith(FREE_FORM) and not known.intersection(_with_sections(name))
    ]


def describe_unknown(name: str, engine: str) -> str:
    """A sentence about a setting that the host does not know, with those that were probably meant."""
    for other in {"dp", "megatron"} - {engine}:
        if name in _leaves(host_defaults(other)):
            return f"{name} belongs to model_engine={other}; this run has model_engine={engine}."
    known = list(_leaves(host_defaults(engine)))
    section, _, last = name.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    near = [beside[close] for close in get_close_matches(last, beside)] or get_close_matches(name, known, cutoff=0.8)
    remedy = f"nearest: {', '.join(near)}" if near else "`python -m verl.trainer.main_ppo --cfg job` prints them"
    return f"{name} is not a setting of the host with model_engine={engine}; {remedy}."


def _leaves(config: Any, at: str = "") -> Iterator[str]:
    """Dotted names of everything that is set."""
    from omegaconf import OmegaConf

    items: Any = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    for key, value in items.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def _with_sections(name: str) -> list[str]:
    """A setting and the sections around it: what is empty in the host may be filled with anything."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def check_overrides(overrides: list[str]) -> None:
    """Compose the host's configuration with these overrides and complete it as ``main_ppo`` would.

    Raises:
        ValueError: one sentence, the composition's or ours.
    """
    from fgrpo_plugin.host.validate import complete, is_f_divergence

    config = compose(overrides)
    if is_f_divergence(config):
        complete(config)
