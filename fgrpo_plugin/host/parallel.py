"""How the host spreads a model and its rows over ranks, from its configuration."""

from typing import Any


def model_parallel_size(config: Any) -> int:
    """Ranks that hold one copy of the actor and see the same rows: TP x PP x CP, or Ulysses sequence parallel."""
    actor = config.actor_rollout_ref.actor
    if actor.strategy == "megatron":
        engine = actor.megatron
        return engine.tensor_model_parallel_size * engine.pipeline_model_parallel_size * engine.context_parallel_size
    # The host still takes the actor's own, older key, and calls the engine's by two names.
    engine = actor.get("fsdp_config") or actor.get("veomni") or {}
    older = actor.get("ulysses_sequence_parallel_size")
    sizes = (older, engine.get("ulysses_sequence_parallel_size"), engine.get("ulysses_parallel_size"))
    return max(size or 1 for size in sizes)


def data_parallel_size(config: Any) -> int:
    """Ranks over which the host spreads rows."""
    actor = config.actor_rollout_ref.actor
    if actor.strategy == "megatron" and actor.megatron.get("dynamic_context_parallel"):
        return 1  # every rank is given every row
    return max(1, _world_size(config) // model_parallel_size(config))


def check_parallel_sizes(config: Any) -> None:
    """Refuse sizes that do not divide the GPUs of the trainer, before any of them is taken.

    Raises:
        ValueError: names the settings and the remedy.
    """
    world = _world_size(config)
    actor = config.actor_rollout_ref.actor
    sizes = {"model-parallel": model_parallel_size(config)}
    if actor.strategy == "megatron" and actor.megatron.expert_model_parallel_size > 1:
        engine = actor.megatron
        expert_tensor = engine.expert_tensor_parallel_size or engine.tensor_model_parallel_size
        sizes["expert-parallel"] = (
            engine.expert_model_parallel_size * expert_tensor * engine.pipeline_model_parallel_size
        )
    for name, size in sizes.items():
        if world % size:
            raise ValueError(
                f"trainer.nnodes x trainer.n_gpus_per_node = {world} GPUs are no multiple of the {name} size {size} "
                f"of actor_rollout_ref.actor; change one of them, so that whole copies of the model fit."
            )


def _world_size(config: Any) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node
