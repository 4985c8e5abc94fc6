"""How verl spreads a model over ranks, from its configuration."""

import math
from typing import Any

from fgrpo_plugin.model_shape import find_model

STRATEGIES = {"dp": ("fsdp", "fsdp2"), "megatron": ("megatron",), "veomni": ("veomni",)}
"""verl's ``model_engine`` -> strategies of its actor, for the engines whose splits are known here."""
WHOLE_SEQUENCES = ("sdpa", "eager", "flex_attention")
"""Attention of transformers that verl's Ulysses exchanges do not go around: they go around flash attention."""
LORA_KEYS = {"megatron": "lora.rank"}
"""Strategy -> key under `actor_rollout_ref.model` of which its engine makes an adapter; lora_rank for the others."""


def model_parallel_size(config: Any, part: str = "actor") -> int:
    """Ranks that hold one copy of the model and see the same rows: TP x PP x CP, or Ulysses sequence parallel.

    Args:
        config: verl's configuration.
        part: ``actor`` or ``ref``, each of which has sizes of its own.
    """
    section = config.actor_rollout_ref[part]
    if section.strategy == "megatron":
        engine = section.megatron
        return engine.tensor_model_parallel_size * engine.pipeline_model_parallel_size * engine.context_parallel_size
    # An older key of the section wins over the engine's where it is above 1; the engines call theirs by two names.
    engine = section.get("fsdp_config") or section.get("veomni") or {}
    older = section.get("ulysses_sequence_parallel_size") or 1
    newer = engine.get("ulysses_sequence_parallel_size") or engine.get("ulysses_parallel_size") or 1
    return older if older > 1 else newer


def data_parallel_size(config: Any, part: str = "actor") -> int:
    """Ranks over which verl spreads the rows of a part, ``actor`` or ``ref``."""
    section = config.actor_rollout_ref[part]
    if section.strategy == "megatron" and section.megatron.get("dynamic_context_parallel"):
        return 1  # every rank is given every row
    return max(1, _world_size(config) // model_parallel_size(config, part))


def parts_with_engine(config: Any) -> list[str]:
    """Sections whose engines are started: the reference's where it is not the actor itself."""
    return ["actor"] if reference_is_in_actor(config) else ["actor", "ref"]


def reference_is_in_actor(config: Any) -> bool:
    """Return whether the reference is the actor with its adapter switched off (LoRA)."""
    model = config.actor_rollout_ref.model
    rank = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or 0
    return rank > 0 or model.get("lora_adapter_path") is not None


def has_uneven_stages(megatron: Any) -> bool:
    """Return whether Megatron's section of the configuration states which layers a pipeline stage holds."""
    transformer = megatron.get("override_transformer_config") or {}
    return any("pipeline" in name and value for name, value in transformer.items())


def lora_key(config: Any) -> str:
    """The setting of which the run's engine makes an adapter."""
    return "actor_rollout_ref.model." + LORA_KEYS.get(config.actor_rollout_ref.actor.strategy, "lora_rank")


def uses_lora(config: Any) -> bool:
    """Return whether an adapter is trained that is not merged into the weights before they are sent."""
    return reference_is_in_actor(config) and not (config.actor_rollout_ref.model.get("lora") or {}).get("merge", False)


def check_parallel_sizes(config: Any, generates: bool = True) -> None:
    """Refuse sizes that divide neither the GPUs nor, where its shape is known here, the model, before a GPU is taken.

    Args:
        config: verl's configuration.
        generates: whether a rollout engine is started.

    Raises:
        ValueError: names the settings and the remedy.
    """
    for part in parts_with_engine(config):
        _check_engine(config, part)
    if generates:
        _check_replicas(config)
    _check_model_splits(config, generates)


def _check_engine(config: Any, part: str) -> None:
    """GPUs and parallel sizes of one engine."""
    at, section, world = f"actor_rollout_ref.{part}", config.actor_rollout_ref[part], _world_size(config)
    actors = config.actor_rollout_ref.actor.strategy
    if not any({section.strategy, actors} <= set(of_one_engine) for of_one_engine in STRATEGIES.values()):
        raise ValueError(
            f"{at}.strategy={section.strategy} is of another engine than actor_rollout_ref.actor.strategy={actors}; "
            "remove the former."
        )
    sizes = {"model-parallel": model_parallel_size(config, part)}
    if section.strategy == "megatron" and section.megatron.expert_model_parallel_size > 1:
        engine = section.megatron
        expert_tensor = engine.expert_tensor_parallel_size or engine.tensor_model_parallel_size
        sizes["expert-parallel"] = (
            engine.expert_model_parallel_size * expert_tensor * engine.pipeline_model_parallel_size
        )
    for name, size in sizes.items():
        if world % size:
            raise ValueError(
                f"trainer.nnodes x trainer.n_gpus_per_node = {world} GPUs are no multiple of the {name} size {size} "
                f"of {at}; change one of them, so that whole copies of the model fit."
            )
    if section.strategy not in STRATEGIES["dp"] or model_parallel_size(config, part) == 1:
        return
    attention = (config.actor_rollout_ref.model.get("override_config") or {}).get("attn_implementation")
    if attention in WHOLE_SEQUENCES:
        raise ValueError(
            f"actor_rollout_ref.model.override_config.attn_implementation={attention} with Ulysses: each "
            "rank would attend to its own part of the sequence, without a word; set flash_attention_2 "
            "(cpu_packed on a CPU), or ulysses_sequence_parallel_size=1."
        )
    if not config.actor_rollout_ref.model.get("use_remove_padding", False):
        raise ValueError(
            "actor_rollout_ref.model.use_remove_padding=false with Ulysses: verl splits packed rows alone; set it to "
            "true, or ulysses_sequence_parallel_size=1."
        )


def _check_replicas(config: Any) -> None:
    """GPUs of the rollout engine, and those that train where they generate too."""
    rollout = config.actor_rollout_ref.rollout
    sizes = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")
    replica = math.prod(rollout.get(name, 1) for name in sizes)
    apart = config.trainer.v1.trainer_mode == "separate_async"
    pools = {"generate": rollout.nnodes * rollout.n_gpus_per_node} if apart else {}
    if not apart or config.actor_rollout_ref.get("hybrid_engine", True):
        pools["train and generate"] = _world_size(config)
    for what, gpus in pools.items():
        if gpus % replica:
            raise ValueError(
                f"{gpus} GPUs that {what} are no multiple of the {replica} of one replica; change "
                f"actor_rollout_ref.rollout.{', '.join(sizes)} or their number."
            )


def _check_model_splits(config: Any, generates: bool) -> None:
    """Heads and layers of a model in a local folder or in the table of `fgrpo plan`."""
    try:
        model = find_model(str(config.actor_rollout_ref.model.path))
    except ValueError:
        return
    split = {"actor_rollout_ref.rollout": config.actor_rollout_ref.rollout} if generates else {}
    for part in parts_with_engine(config):
        section = config.actor_rollout_ref[part]
        if section.strategy == "megatron":
            at = f"actor_rollout_ref.{part}.megatron"
            split[at] = section.megatron
            stages = section.megatron.pipeline_model_parallel_size * (
                section.megatron.get("virtual_pipeline_model_parallel_size") or 1
            )
            if model.layers % stages and not has_uneven_stages(section.megatron):
                raise ValueError(
                    f"{at}.pipeline_model_parallel_size makes {stages} stages of {model.layers} layers of {model.name};"
                    " choose a size that divides them, or state uneven stages in override_transformer_config."
                )
            continue
        size = model_parallel_size(config, part)
        if model.heads % size or min(model.kv_heads % size, size % model.kv_heads):
            raise ValueError(
                f"actor_rollout_ref.{part}: ulysses_sequence_parallel_size={size} does not divide the {model.heads} "
                f"attention heads of {model.name}, or neither it nor their {model.kv_heads} key-value heads divide the "
                "other; choose one that does."
            )
    for at, section in split.items():
        size = section.tensor_model_parallel_size
        if model.heads % size:
            raise ValueError(
                f"{at}.tensor_model_parallel_size={size} does not divide the {model.heads} attention heads of "
                f"{model.name}; choose one that does."
            )


def sequence_ranks(config: Any, part: str = "actor") -> int:
    """Ranks that share one sequence: context or Ulysses parallel."""
    section = config.actor_rollout_ref[part]
    if section.strategy == "megatron":
        return section.megatron.context_parallel_size
    return model_parallel_size(config, part)


def _world_size(config: Any) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node
