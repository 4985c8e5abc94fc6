"""How verl spreads a model over ranks, from its configuration."""

from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.model_shape import find_model

STRATEGIES = {"dp": ("fsdp", "fsdp2"), "megatron": ("megatron",), "veomni": ("veomni",)}
"""The host's ``model_engine`` -> strategies of its actor, for the engines whose splits are known here."""
WHOLE_SEQUENCES = ("sdpa", "eager", "flex_attention")
"""Attention of transformers that the host's Ulysses exchanges do not go around: they go around flash attention."""
COUNTS = (
    *("trainer.nnodes", "trainer.n_gpus_per_node", "data.train_batch_size"),
    *("data.max_prompt_length", "data.max_response_length"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.actor.ppo_epochs"),
    *("actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.tensor_model_parallel_size"),
)
"""Settings that verl divides or multiplies by."""


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


def uses_lora(config: Any) -> bool:
    """Whether an adapter is trained that is not merged into the weights before they are sent."""
    return reference_is_in_actor(config) and not (config.actor_rollout_ref.model.get("lora") or {}).get("merge", False)


def check_counts(config: Any) -> None:
    """Refuse what is no whole number above 0 where verl needs one.

    Raises:
        ValueError: names the setting.
    """
    for name in COUNTS:
        value = OmegaConf.select(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value} must be a whole number above 0.")


def check_parallel_sizes(config: Any, generates: bool = True) -> None:
    """Refuse sizes that divide neither the GPUs nor, where its shape is known here, the model, before a GPU is taken.

    Args:
        config: verl's configuration.
        generates: whether a rollout engine is started.

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
    if generates and generating % replica:
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
    packs = config.actor_rollout_ref.model.get("use_remove_padding", False)
    if actor.strategy in STRATEGIES["dp"] and model_parallel_size(config) > 1 and not packs:
        raise ValueError(
            "actor_rollout_ref.model.use_remove_padding=false with Ulysses: verl splits packed rows alone; set it to "
            "true, or ulysses_sequence_parallel_size=1."
        )
    _check_model_splits(config, generates)


def _check_model_splits(config: Any, generates: bool) -> None:
    """Heads and layers of a model in a local folder or in the table of `fgrpo plan`."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    try:
        model = find_model(str(config.actor_rollout_ref.model.path))
    except ValueError:
        return
    split = {"actor_rollout_ref.rollout": rollout} if generates else {}
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
    elif (size := model_parallel_size(config)) and (
        model.heads % size or min(model.kv_heads % size, size % model.kv_heads)
    ):
        raise ValueError(
            f"ulysses_sequence_parallel_size={size} does not divide the {model.heads} attention heads of {model.name}, "
            f"or neither it nor their {model.kv_heads} key-value heads divide the other; choose one that does."
        )
    for at, section in split.items():
        size = section.tensor_model_parallel_size
        if model.heads % size:
            raise ValueError(
                f"{at}.tensor_model_parallel_size={size} does not divide the {model.heads} attention heads of "
                f"{model.name}; choose one that does."
            )


def sequence_ranks(config: Any) -> int:
    """Ranks that share one sequence: context or Ulysses parallel."""
    actor = config.actor_rollout_ref.actor
    return actor.megatron.context_parallel_size if actor.strategy == "megatron" else model_parallel_size(config)


def _world_size(config: Any) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node
