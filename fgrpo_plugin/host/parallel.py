"""How the host spreads a model and its rows over ranks, from its configuration."""

import math
from typing import Any

ROWS = ("actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.rollout.n")


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


def reference_is_in_actor(config: Any) -> bool:
    """Whether the reference is the actor with its adapter switched off (LoRA)."""
    model = config.actor_rollout_ref.model
    rank = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or 0
    return rank > 0 or model.get("lora_adapter_path") is not None


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


def check_micro_batches(config: Any, answers: bool = True, preference_rows: int = 0) -> None:
    """Refuse rows that do not make whole micro-batches on every rank, which the host would find in its first step.

    Args:
        config: the host's configuration.
        answers: whether rolled-out rows are trained on.
        preference_rows: rows that f-HAL joins to a mini-batch.

    Raises:
        ValueError: names the settings and the remedy.
    """
    parts = config.actor_rollout_ref
    actor, ranks = parts.actor, data_parallel_size(config)
    mini_batch = actor.ppo_mini_batch_size * parts.rollout.n if answers else 0
    trained = f"{ROWS[0]} x {ROWS[1]}" if not preference_rows else f"data.preference.batch_size={preference_rows}"
    passes = [
        (trained, mini_batch + preference_rows, "actor", actor, "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz")
    ]
    if answers:
        whole = math.ceil(config.data.train_batch_size * parts.rollout.n / mini_batch) * mini_batch
        rows = mini_batch if config.trainer.v1.trainer_mode == "separate_async" else whole
        named = ("log_prob_micro_batch_size_per_gpu", "log_prob_use_dynamic_bsz")
        part = "rollout" if reference_is_in_actor(config) else "ref"
        passes.append((f"data.train_batch_size x {ROWS[1]}", rows, part, parts[part], *named))
    for what, rows, part, section, size, dynamic in passes:
        micro_batch = section.get(size)
        if micro_batch and not section.get(dynamic) and (rows % ranks or rows // ranks % micro_batch):
            raise ValueError(
                f"{what} makes {rows} rows on {ranks} data-parallel ranks, no multiple of "
                f"actor_rollout_ref.{part}.{size}={micro_batch} on each; change either, or set "
                f"actor_rollout_ref.{part}.{dynamic}=true."
            )


def _world_size(config: Any) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node
