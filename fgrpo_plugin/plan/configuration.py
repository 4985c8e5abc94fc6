"""Between verl's configuration and a `PlannedRun`: reading one, and naming the settings that change the other."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin.host.settings.layout import STRATEGIES, has_uneven_stages, reference_is_in_actor
from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.gpus import Gpu
from fgrpo_plugin.plan.planned_run import FSDP_ONLY, MEGATRON_ONLY, PlannedRun

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"
PLANNED = ("dp", "megatron")
"""Values of verl's ``model_engine``."""
SCHEDULED = 0.5  # both halves are in every update; the value between 0 and 1 changes no cost

KEYS = {
    "model": f"{MODEL}.path",
    "nodes": "trainer.nnodes",
    "gpus_per_node": "trainer.n_gpus_per_node",
    "tp": f"{ACTOR}.megatron.tensor_model_parallel_size",
    "pp": f"{ACTOR}.megatron.pipeline_model_parallel_size",
    "cp": f"{ACTOR}.megatron.context_parallel_size",
    "ep": f"{ACTOR}.megatron.expert_model_parallel_size",
    "etp": f"{ACTOR}.megatron.expert_tensor_parallel_size",
    "sp": f"{ACTOR}.ulysses_sequence_parallel_size",
    "shard": f"{ACTOR}.fsdp_config.fsdp_size",
    "param_offload": f"{ACTOR}.{{engine}}.param_offload",
    "optimizer_offload": f"{ACTOR}.{{engine}}.optimizer_offload",
    "ref_offload": "actor_rollout_ref.ref.megatron.param_offload",
    "fused_kernels": f"{MODEL}.use_fused_kernels",
    "prompts": "data.train_batch_size",
    "group": f"{ROLLOUT}.n",
    "minibatch": f"{ACTOR}.ppo_mini_batch_size",
    "epochs": f"{ACTOR}.ppo_epochs",
    "prompt_length": "data.max_prompt_length",
    "response_length": "data.max_response_length",
    "dynamic_batch": f"{ACTOR}.use_dynamic_bsz",
    "tokens_per_gpu": f"{ACTOR}.ppo_max_token_len_per_gpu",
    "micro_rows": f"{ACTOR}.ppo_micro_batch_size_per_gpu",
    "rollout_tp": f"{ROLLOUT}.tensor_model_parallel_size",
    "utilization": f"{ROLLOUT}.gpu_memory_utilization",
    "max_rows": f"{ROLLOUT}.max_num_seqs",
    "max_batched_tokens": f"{ROLLOUT}.max_num_batched_tokens",
    "rollout_dtype": f"{ROLLOUT}.dtype",
    "rollout_sleeps": f"{ROLLOUT}.free_cache_engine",
    "prefix_caching": f"{ROLLOUT}.enable_prefix_caching",
    "bucket_mib": f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes",
    "temperature": f"{ROLLOUT}.temperature",
    "dtype": f"{ACTOR}.fsdp_config.model_dtype",
    "ref_dtype": "actor_rollout_ref.ref.fsdp_config.model_dtype",
    "preference_rows": "++data.preference.batch_size",
    "lam": f"++{ACTOR}.policy_loss.f_divergence.lam",
}
"""Field of `PlannedRun` -> setting of verl, where the two hold the same value."""
LOG_PROBS = {
    "log_prob_dynamic_batch": "log_prob_use_dynamic_bsz",
    "log_prob_tokens_per_gpu": "log_prob_max_token_len_per_gpu",
    "log_prob_micro_rows": "log_prob_micro_batch_size_per_gpu",
}
"""The same for passes of log-probs, which have their settings twice: in ``ref``, and in ``rollout`` for the actor's."""
PASSES = ("actor_rollout_ref.ref", ROLLOUT)


def overrides(changes: Mapping[str, Any], engine: str) -> list[str]:
    """verl's settings that stand for changed fields of a `PlannedRun`.

    Args:
        changes: field -> value.
        engine: that trains, since its section holds some of them.
    """
    section = "megatron" if engine == "megatron" else "fsdp_config"
    found = []
    for field, value in changes.items():
        if field == "engine":
            found += ["model_engine=megatron"] if value == "megatron" else [f"{ACTOR}.strategy={value}"]
        elif field == "step_offload":
            if engine == "megatron":
                prefix = f"++{ACTOR}.optim.override_optimizer_config"
                found += [f"{prefix}.optimizer_cpu_offload={value}", f"{prefix}.optimizer_offload_fraction=1.0"]
            else:
                found.append(f"{ACTOR}.fsdp_config.offload_policy={value}")
        elif field == "recompute":
            found += _recompute(value, engine)
        elif field in LOG_PROBS:
            found += [f"{at}.{LOG_PROBS[field]}={value}" for at in PASSES]
        elif field == "lora_rank":
            found.append(f"{MODEL}.lora.rank={value}" if engine == "megatron" else f"{MODEL}.lora_rank={value}")
        else:
            found.append(f"{KEYS[field].format(engine=section)}={value}")
    return found


def overridden(words: list[str], later: list[str]) -> list[str]:
    """Overrides with later ones, each setting once: the last value is the one that counts."""
    names = {setting(word) for word in later}
    return [word for word in words if setting(word) not in names] + later


def setting(word: str) -> str:
    """The setting that an override names."""
    return word.partition("=")[0].lstrip("+")


def _recompute(value: str, engine: str) -> list[str]:
    if engine != "megatron":
        return [f"{MODEL}.enable_gradient_checkpointing={value != 'none'}"]
    prefix = f"++{ACTOR}.megatron.override_transformer_config"
    found = [f"{prefix}.recompute_granularity={'null' if value == 'none' else value}"]
    if value == "full":
        found += [f"{prefix}.recompute_method=uniform", f"{prefix}.recompute_num_layers=1"]
    return found


def engine_of(config: DictConfig) -> str:
    """The engine that verl starts for a configuration: ``fsdp``, ``fsdp2`` or ``megatron``.

    Raises:
        ValueError: another engine, or an actor of one with the strategy of another.
    """
    engine, strategy = config.model_engine, config.actor_rollout_ref.actor.strategy
    if engine not in PLANNED:
        raise ValueError(f"model_engine={engine} is not planned; choose among {', '.join(PLANNED)}.")
    if strategy not in STRATEGIES[engine]:
        raise ValueError(
            f"{ACTOR}.strategy={strategy} contradicts model_engine={engine}, which is what verl runs; leave one of "
            "them out, or take a group of the engine that is meant."
        )
    return str(strategy)


def planned_run_from_config(config: DictConfig, gpu: Gpu, **changes: Any) -> tuple[PlannedRun, list[str]]:
    """Return what a configuration of ``main_ppo`` asks for, and what the plan does not model of it.

    Args:
        config: composed; it need not name data that exist.
        gpu: the device.
        changes: fields of `PlannedRun` that no configuration holds (mean lengths).

    Raises:
        ValueError: an unknown model, another engine, or values that contradict one another.
    """

    def get(key: str, default: Any = None) -> Any:
        value = OmegaConf.select(config, key, default=default, throw_on_missing=False)
        return default if value is None else value

    engine = engine_of(config)
    megatron = engine == "megatron"
    section = f"{ACTOR}.{'megatron' if megatron else 'fsdp_config'}"
    check_types(config)
    fields: dict[str, Any] = {"engine": engine, "gpu": gpu, "model": find_model(get(f"{MODEL}.path"))}
    skipped = {"model", "lam", "preference_rows", *(FSDP_ONLY if megatron else MEGATRON_ONLY)}
    for field, key in KEYS.items():
        if field not in skipped:
            value = get(key.format(engine=section.rsplit(".", 1)[1]))
            if value is not None:
                fields[field] = value
    if megatron:
        transformer = get(f"{section}.override_transformer_config", {})
        fields |= {
            "compute_dtype": get(f"{section}.dtype", "bf16"),
            "virtual_pp": get(f"{section}.virtual_pipeline_model_parallel_size", 1),
            "uneven_stages": has_uneven_stages(get(section)),
            "sequence_parallel": get(f"{section}.sequence_parallel", True),
            "distributed_optimizer": get(f"{section}.use_distributed_optimizer", True),
            "step_offload": bool(get(f"{ACTOR}.optim.override_optimizer_config.optimizer_cpu_offload", False)),
            "recompute": transformer.get("recompute_granularity") or "none",
            "lora_rank": get(f"{MODEL}.lora.rank", 0),
        }
    else:
        fields |= {
            "compute_dtype": get(f"{section}.mixed_precision.param_dtype", "bf16"),
            "sp": max(get(KEYS["sp"], 1), get(f"{section}.ulysses_sequence_parallel_size", 1)),
            "reshard_after_forward": get(f"{section}.reshard_after_forward", True),
            "step_offload": get(f"{section}.offload_policy", False),
            "recompute": "full" if get(f"{MODEL}.enable_gradient_checkpointing", False) else "none",
            "lora_rank": get(f"{MODEL}.lora_rank", 0),
        }
    fields["entropy"] = bool(get(f"{ACTOR}.calculate_entropy", False) or get(f"{ACTOR}.entropy_coeff", 0))
    if get("trainer.v1.trainer_mode") == "separate_async":
        fields["rollout_gpus"] = get(f"{ROLLOUT}.nnodes") * get(f"{ROLLOUT}.n_gpus_per_node")
        fields["trainer_generates"] = get("actor_rollout_ref.hybrid_engine", True)
        if not fields["rollout_gpus"]:
            raise ValueError(f"trainer mode separate_async needs GPUs that generate: {ROLLOUT}.nnodes is 0; set it.")
    fields["lora_merged"] = bool(get(f"{MODEL}.lora.merge", False))
    fields |= _algorithm(config, get)
    check_micro_batches_are_set(config, fields["reference"])
    fields |= _log_prob_micro_batches(get, fields) | changes
    return PlannedRun(**fields), _notes(get)


def check_types(config: DictConfig) -> None:
    """Refuse words where verl wants numbers, before anything is computed with them.

    Raises:
        ValueError: names the setting.
    """
    kinds = get_type_hints(PlannedRun)
    section = "megatron" if engine_of(config) == "megatron" else "fsdp_config"
    keys = {key.format(engine=section): kinds[field] for field, key in KEYS.items() if not key.startswith("++")}
    keys |= {f"{at}.{key}": kinds[field] for field, key in LOG_PROBS.items() for at in PASSES}
    for key, kind in keys.items():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        wanted = KINDS.get(kind)
        if (
            value is not None
            and wanted
            and (not isinstance(value, wanted[0]) or isinstance(value, bool) is not wanted[1])
        ):
            raise ValueError(f"{key}={value!r} must be {wanted[2]}.")


KINDS: dict[Any, tuple[Any, bool, str]] = {
    int: (int, False, "a whole number"),
    float: (int | float, False, "a number"),
    bool: (bool, True, "true or false"),
}


def check_micro_batches_are_set(config: DictConfig, reference: bool) -> None:
    """Refuse a pass that has neither dynamic batches nor a micro-batch, and settings of two passes that contradict.

    verl refuses most of it in ``ActorConfig`` and ``validate_config``; ``ActorRolloutRefWorker`` asserts the rest.

    Args:
        config: composed.
        reference: whether the algorithm needs one.

    Raises:
        ValueError: names the setting and the remedy.
    """

    def get(key: str) -> Any:
        return OmegaConf.select(config, key, throw_on_missing=False)

    dynamic = bool(get(f"{ACTOR}.use_dynamic_bsz"))
    passes = [(ACTOR, "use_dynamic_bsz", "ppo_micro_batch_size"), (ROLLOUT, *LOG_PROB_NAMES)]
    if reference and not (reference_is_in_actor(config) and dynamic):
        passes.append((PASSES[0], *LOG_PROB_NAMES))
    if bool(get(f"{ROLLOUT}.log_prob_use_dynamic_bsz")) is not dynamic:
        raise ValueError(
            f"{ROLLOUT}.log_prob_use_dynamic_bsz={get(f'{ROLLOUT}.log_prob_use_dynamic_bsz')} contradicts "
            f"{ACTOR}.use_dynamic_bsz={dynamic}, which verl's worker asserts to be the same; leave the first out."
        )
    for at, switch, size in passes:
        if get(f"{at}.{switch}") or get(f"{at}.{size}_per_gpu") is not None:
            continue
        older = f" ({size}, which is set, is not read by verl's workers)" if get(f"{at}.{size}") is not None else ""
        raise ValueError(
            f"{at}.{size}_per_gpu is absent{older} and {at}.{switch} is false, which verl refuses; set "
            f"{ACTOR}.use_dynamic_bsz=true, or {at}.{size}_per_gpu to the rows of a micro-batch."
        )


LOG_PROB_NAMES = ("log_prob_use_dynamic_bsz", "log_prob_micro_batch_size")


def _log_prob_micro_batches(get: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The largest micro-batch among the passes of log-probs that the run makes."""
    in_actor = fields["lora_rank"] > 0
    passes = [PASSES[0]] if fields["reference"] and not in_actor else []
    passes += [ROLLOUT] if fields["old_log_prob"] or not passes else []
    dynamic = bool(get(f"{passes[0]}.log_prob_use_dynamic_bsz"))
    found: dict[str, Any] = {"log_prob_dynamic_batch": dynamic}
    for field in ("log_prob_tokens_per_gpu", "log_prob_micro_rows"):
        sizes = [size for at in passes if (size := get(f"{at}.{LOG_PROBS[field]}")) is not None]
        found |= {field: max(sizes)} if sizes else {}
    return found


def _algorithm(config: DictConfig, get: Any) -> dict[str, Any]:
    """Return which passes and rows the algorithm needs."""
    from fgrpo_plugin.host.settings.f_divergence import f_divergence_settings
    from fgrpo_plugin.host.settings.reading import is_f_divergence

    bypass = bool(get("algorithm.rollout_correction.bypass_mode", False))
    if not is_f_divergence(config):
        kl = bool(get(f"{ACTOR}.use_kl_loss", False)) or bool(get("algorithm.use_kl_in_reward", False))
        return {"reference": kl, "old_log_prob": not bypass}
    settings = f_divergence_settings(config)
    recomputed = settings.gamma != 0 and settings.old_log_prob != "current"
    found: dict[str, Any] = {"reference": True, "old_log_prob": recomputed}
    if get("algorithm.adv_estimator") == "f_hal":
        lam = settings.constant_lam
        rows = get("data.preference.batch_size") or get(f"{ACTOR}.ppo_mini_batch_size") * get(f"{ROLLOUT}.n")
        found |= {"lam": SCHEDULED if lam is None else lam, "preference_rows": rows}
    return found


def _notes(get: Any) -> list[str]:
    notes = []
    if get("algorithm.adv_estimator") == "gae" or get("critic.enable", False):
        notes.append("the critic is not modelled.")
    mode = get("trainer.v1.trainer_mode", "sync")
    if mode == "separate_async":
        notes.append(
            "generation and training are planned side by side, a step as long as the longer of both; the training GPUs "
            "generate at the start and in validation alone."
        )
    elif mode != "sync":
        notes.append(f"trainer mode {mode} is planned as if it were sync: phases one after the other on the same GPUs.")
    if get("reward.reward_model.enable", False):
        notes.append("the reward model is not modelled: it takes its own memory and time.")
    return notes
