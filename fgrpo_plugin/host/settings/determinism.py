"""Deterministic mode, `actor_rollout_ref.rollout.full_determinism=true`: what it needs, and what it cannot be with.

verl's setting of that name seeds every request alike, so that the responses of a group are one and the same, and names
every request of a step alike; with our estimators it gives equal runs of groups
(driver/seeded_rollouts.py, driver/stable_order.py).
"""

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

SWITCH = "actor_rollout_ref.rollout.full_determinism"
MANAGER = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
OURS = "fgrpo_plugin.host.driver.seeded_rollouts.SeededAgentLoopManager"


def is_deterministic(config: Any) -> bool:
    """Return whether a validated run is in deterministic mode."""
    return bool(OmegaConf.select(config, MANAGER) == OURS)


def check_determinism(config: DictConfig) -> None:
    """Refuse what depends on which response comes first.

    Raises:
        ValueError: names the setting and the remedy.
    """
    if not OmegaConf.select(config, SWITCH):
        return
    select = lambda key, default=None: OmegaConf.select(config, key, default=default)  # noqa: E731
    refused = [
        (
            select("trainer.v1.trainer_mode") != "sync",
            f"trainer.v1.trainer_mode={select('trainer.v1.trainer_mode')}",
            "which rollouts a step gets depends on time there; set it to sync",
        ),
        (
            select("algorithm.filter_groups.enable"),
            "algorithm.filter_groups.enable=true",
            "which groups are kept depends on which end first; set it to false",
        ),
        (
            select("trainer.v1.sampler.sync_refill_failed_groups"),
            "trainer.v1.sampler.sync_refill_failed_groups=true",
            "which prompts replace others depends on which end first; set it to false",
        ),
        (
            select("trainer.v1.sampler.custom_sampler.path"),
            "trainer.v1.sampler.custom_sampler",
            "the order of rows is then its own; remove it",
        ),
        (
            select("actor_rollout_ref.rollout.name") != "vllm",
            f"actor_rollout_ref.rollout.name={select('actor_rollout_ref.rollout.name')}",
            "a seed for each response is known of vLLM alone; set it to vllm",
        ),
        (
            select(MANAGER) not in (None, OURS),
            f"{MANAGER}={select(MANAGER)}",
            "requests are seeded by a manager of ours; remove it",
        ),
        (
            select("data.shuffle") and select("data.seed") is None,
            "data.shuffle=true without data.seed",
            "verl shuffles by the clock then; set data.seed",
        ),
    ]
    for wrong, setting, remedy in refused:
        if wrong:
            raise ValueError(f"{setting} contradicts {SWITCH}=true: {remedy}, or remove {SWITCH}.")


def deterministic_settings(config: DictConfig) -> list[tuple[str, Any, str]]:
    """What deterministic mode sets: each key, its value and why; nothing where the run does not ask for it."""
    if not OmegaConf.select(config, SWITCH):
        return []
    rollout, why = "actor_rollout_ref.rollout", f"{SWITCH}=true: "
    found: list[tuple[str, Any, str]] = [
        (MANAGER, OURS, why + "a seed for each response, and rows in the order of their prompts"),
        ("data.validation_shuffle", False, why + "the order of validation's prompts"),
    ]
    for part in ("actor", "ref"):
        engine = f"actor_rollout_ref.{part}.fsdp_config.full_determinism"
        if OmegaConf.select(config, engine) is not None:
            found.append((engine, True, why + "the engine's own operations and first weights of an adapter"))
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        one = "on a CPU a sum depends on what else is in a batch: "
        found += [
            (SWITCH, False, "verl would ask vLLM for batch-invariant kernels, which need a GPU; the rest is set here"),
            (f"{rollout}.max_num_seqs", 1, why + one + "one response at a time"),
            (f"{rollout}.enable_prefix_caching", False, why + one + "no part of a prompt from another request"),
        ]
    return found
