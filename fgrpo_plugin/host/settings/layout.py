"""How the host spreads a model and its rows over ranks, from its configuration."""

import math
from typing import Any

from fgrpo_plugin.model_shape import find_model

STRATEGIES = {"dp": ("fsdp", "fsdp2"), "megatron": ("megatron",), "veomni": ("veomni",)}
"""The host's ``model_engine`` -> strategies of its actor, for the engines whose splits are known here."""
WHOLE_SEQUENCES = ("sdpa", "eager", "flex_attention")
"""Attention of transformers that the host's Ulysses exchanges do not go around: they go around flash attention."""
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


def has_uneven_stages(megatron: Any) -> bool:
    """Whether Megatron's section of the configuration states which layers a pipeline stage holds."""
    transformer = megatron.get("override_transformer_config") or {}
    return any("pipeline" in name and value for name, value in transformer.items())


def check_parallel_sizes(config: Any) -> None:
    """Refuse sizes that divide neither the GPUs nor, where its shape is known here, the model, before a GPU is taken.

    Raises:
        ValueError: names the settings and the remedy.
    """
    world = _world_size(config)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
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
    apart = config.trainer.v1.trainer_mode == "separate_async"
    generating = rollout.nnodes * rollout.n_gpus_per_node if apart else world
    replica = rollout.tensor_model_parallel_size * rollout.get("pipeline_model_parallel_size", 1)
    if generating % replica:
        raise ValueError(
            f"{generating} GPUs that generate are no multiple of the {replica} of one replica; change "
            "actor_rollout_ref.rollout.tensor_model_parallel_size (or pipeline_model_parallel_size) or their number."
        )
    attention = (config.actor_rollout_ref.model.get("override_config") or {}).get("attn_implementation")
    if attention in WHOLE_SEQUENCES and actor.strategy != "megatron" and model_parallel_size(config) > 1:
        raise ValueError(
            f"actor_rollout_ref.model.override_config.attn_implementation={attention} with Ulysses: each "
            "rank would attend to its own part of the sequence, without a word; set flash_attention_2 "
            "(cpu_packed on a CPU), or ulysses_sequence_parallel_size=1."
        )
    _check_model_splits(config)


def _check_model_splits(config: Any) -> None:
    """Heads and layers of a model in a local folder or in the table of `fgrpo plan`."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    try:
        model = find_model(str(config.actor_rollout_ref.model.path))
    except ValueError:
        return
    split = {"actor_rollout_ref.rollout": rollout}
    if actor.strategy == "megatron":
        at = "actor_rollout_ref.actor.megatron"
        split[at] = actor.megatron
        stages = actor.megatron.pipeline_model_parallel_size * (
            actor.megatron.get("virtual_pipeline_model_parallel_size") or 1
        )
        if model.layers % stages and not has_uneven_stages(actor.megatron):
            raise ValueError(
                f"{at}.pipeline_model_parallel_size makes {stages} stages of {model.layers} layers of {model.name}; "
                "choose a size that divides them, or state uneven stages in override_transformer_config."
            )
    for at, section in split.items():
        size = section.tensor_model_parallel_size
        if model.heads % size:
            raise ValueError(
                f"{at}.tensor_model_parallel_size={size} does not divide the {model.heads} attention heads of "
                f"{model.name}; choose one that does."
            )


def check_micro_batches(config: Any, answers: bool = True, preference_rows: int = 0) -> None:
    """Refuse rows that do not make whole micro-batches on every rank, or do not fit into one.

    The host finds either in its first step, after Ray, the models and a rollout.

    Args:
        config: the host's configuration.
        answers: whether rolled-out rows are trained on.
        preference_rows: rows that f-HAL joins to a mini-batch.

    Raises:
        ValueError: names the settings and the remedy.
    """
    parts, data, ranks = config.actor_rollout_ref, config.data, data_parallel_size(config)
    mini_batch = parts.actor.ppo_mini_batch_size * parts.rollout.n if answers else 0
    if mini_batch % ranks:
        raise ValueError(
            f"{ROWS[0]} x {ROWS[1]} makes {mini_batch} rows, no multiple of the {ranks} data-parallel ranks that "
            "share a mini-batch; change one of them."
        )
    trained = f"{ROWS[0]} x {ROWS[1]}" if not preference_rows else f"data.preference.batch_size={preference_rows}"
    passes = [("actor", "ppo_micro_batch_size", "ppo_max_token_len", "use_dynamic_bsz", trained)]
    rows = {"actor": mini_batch + preference_rows}
    if answers:
        # The host fills a batch up to whole mini-batches.
        whole = math.ceil(data.train_batch_size * parts.rollout.n / mini_batch) * mini_batch
        part = "rollout" if reference_is_in_actor(config) else "ref"
        rows[part] = mini_batch if config.trainer.v1.trainer_mode == "separate_async" else whole
        names = ("log_prob_micro_batch_size", "log_prob_max_token_len", "log_prob_use_dynamic_bsz")
        passes.append((part, *names, f"data.train_batch_size x {ROWS[1]}"))
    longest = data.max_prompt_length + data.max_response_length
    for part, micro_batch, tokens, dynamic, what in passes:
        at, section = f"actor_rollout_ref.{part}", parts[part]
        size, limit = section.get(f"{micro_batch}_per_gpu"), section.get(f"{tokens}_per_gpu")
        if section.get(dynamic):
            if limit and limit * _sequence_ranks(config) < longest:
                raise ValueError(
                    f"{at}.{tokens}_per_gpu={limit} does not hold the longest row, data.max_prompt_length + "
                    f"data.max_response_length = {longest}, on {_sequence_ranks(config)} rank(s) along the sequence; "
                    "change one of them."
                )
        elif size and rows[part] // ranks % size:
            raise ValueError(
                f"{what} makes {rows[part]} rows on {ranks} data-parallel ranks, no multiple of "
                f"{at}.{micro_batch}_per_gpu={size} on each; change either, or set {at}.{dynamic}=true."
            )


def _sequence_ranks(config: Any) -> int:
    """Ranks that share one sequence: context or Ulysses parallel."""
    actor = config.actor_rollout_ref.actor
    return actor.megatron.context_parallel_size if actor.strategy == "megatron" else model_parallel_size(config)


def _world_size(config: Any) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node
