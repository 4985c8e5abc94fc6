"""The processes that a step waits for, under the names that a message gives them."""

from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf


def parts_of(trainer: Any, agent_loop_manager: Any) -> dict[str, Any]:
    """Return the handles of a run's Ray actors by name; one that is several things is there once, by its first name.

    Args:
        trainer: verl's, set up.
        agent_loop_manager: verl's.
    """
    rollout, reward = getattr(trainer, "llm_server_manager", None), getattr(trainer, "reward_loop_manager", None)
    judges = getattr(getattr(reward, "reward_model_manager", None), "rollout_replicas", ())
    groups: dict[str, Iterable[Any]] = {
        "actor worker": trainer.actor_rollout_wg.workers,
        "reference worker": getattr(getattr(trainer, "ref_policy_wg", None), "workers", ()),
        "rollout server": _servers(rollout.get_replicas() if rollout else ()),
        "rollout router": [router] if (router := getattr(rollout, "global_load_balancer", None)) else (),
        "agent loop worker": getattr(agent_loop_manager, "agent_loop_workers", ()),
        # Not the handles, which verl gives out only where rewards are computed during generation.
        "reward loop worker": getattr(reward, "reward_loop_workers", ()),
        "reward model server": _servers(judges),
        **_queue(trainer.config),
    }
    named = {f"{name} {index}": actor for name, actors in groups.items() for index, actor in enumerate(actors)}
    return {name: actor for actor, name in {actor: name for name, actor in reversed(named.items())}.items()}


def engine_failure(server: Any) -> str | None:
    """Return why an inference server's engine serves no longer, or None; called in the server's process.

    vLLM's engine is a process of the server, unknown to Ray; without it the server answers every request with an error.
    """
    engine: Any = getattr(server, "engine", None)
    return str(engine.dead_error) if getattr(engine, "errored", False) else None


def has_engine(name: str) -> bool:
    """Return whether a part of this name serves a model by an engine of its own."""
    return name.rsplit(" ", 1)[0].endswith("server")


def _servers(replicas: Iterable[Any]) -> list[Any]:
    return [server for replica in replicas for server in replica.servers]


def _queue(config: Any) -> dict[str, list[Any]]:
    """Controller and storage of TransferQueue, by which the parts hand rows to one another."""
    import ray

    if not ray.is_initialized():  # else asking for an actor would start a Ray
        return {}
    units = OmegaConf.select(config, "transfer_queue.backend.SimpleStorage.num_data_storage_units") or 0
    wanted: dict[str, list[tuple[str, str | None]]] = {
        "queue controller": [("TransferQueueController", "transfer_queue")],
        "queue storage": [(f"TransferQueueStorageUnit#{unit}", None) for unit in range(units)],
    }
    found: dict[str, list[Any]] = {}
    for part, actors in wanted.items():
        found[part] = []
        for name, namespace in actors:
            try:
                found[part].append(ray.get_actor(name, namespace))
            except ValueError:  # another storage than this; what it is made of is not known here
                continue
    return found
