"""Everything but the row that a reference log-prob depends on: the key of the cache in preference/reference_cache.py.

Whole sections of verl's configuration are in it, so that a setting which nobody here has thought of changes the key. A
setting is left out by name alone, in `NEUTRAL`.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.host.settings.layout import reference_is_in_actor
from fgrpo_plugin.preference.model_files import files_fingerprint, folder_fingerprint, model_fingerprint

ENGINES = ("fsdp_config", "megatron", "veomni")
LIBRARIES = ("verl", "transformers", "megatron-core", "mbridge", "megatron-bridge")
NEUTRAL = {
    # Their files are in the key by content.
    *("path", "hf_config_path", "dist_checkpointing_path", "external_lib"),
    # They decide which tokens a row has, and the tokens are in the row.
    *("tokenizer_path", "custom_chat_template"),
    # The reference is what LoRA's adapter is added to.
    *("lora_rank", "lora_alpha", "target_modules", "exclude_modules", "lora_adapter_path", "lora"),
    # Where tensors are and how the work is split: rounding alone, which the recheck of a loaded cache bounds.
    *("use_shm", "param_offload", "optimizer_offload", "offload_policy", "reshard_after_forward"),
    *("fsdp_size", "forward_prefetch", "use_orig_params", "wrap_policy", "ulysses_sequence_parallel_size"),
    *("ulysses_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("virtual_pipeline_model_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size"),
    *("sequence_parallel", "dynamic_context_parallel", "max_seqlen_per_dp_cp_rank", "use_megatron_fsdp"),
    *("pad_to_length", "pad_to_length_bucket", "pad_bshd_to_minibatch_max", "use_no_sync_for_gradient_accumulation"),
    # What only training, checkpoints or the entropy read.
    *(
        "enable_gradient_checkpointing",
        "enable_activation_offload",
        "seed",
        "use_distributed_optimizer",
    ),
    *("override_ddp_config", "dist_ckpt_optim_fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient"),
    *("entropy_from_logits_with_chunking", "entropy_from_logits_chunk_size", "entropy_checkpointing"),
    "dist_checkpointing_prefix",
}
"""Settings of the model and of the reference's engine on which no reference log-prob depends but by rounding."""


def reference_identity(config: Any, memory: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The cache's key: what the reference is, and how verl computes with it, as JSON holds it.

    Args:
        config: verl's whole configuration.
        memory: file in which hashes of model files are remembered.
        say: gets a line before gigabytes are read.

    Raises:
        ValueError: files that cannot be found; names the setting and the remedy.
    """
    model, section = config.actor_rollout_ref.model, reference_section(config)
    name, engine = reference_engine(config)
    at = "actor_rollout_ref.model"
    path = _local(model.path)
    found: dict[str, Any] = {
        "model": _changing(model),
        "engine": {"strategy": str(section.get("strategy")), name: _changing(engine)},
        "temperature": float(config.actor_rollout_ref.rollout.temperature),
        "versions": {library: number for library in LIBRARIES if (number := _version(library))},
    }
    if name == "megatron" and engine.get("use_dist_checkpointing"):
        # verl reads the configuration alone from the model's folder, which need not hold weights.
        setting = f"actor_rollout_ref.{'actor' if reference_is_in_actor(config) else 'ref'}.megatron"
        checkpoint = str(engine.get("dist_checkpointing_path"))
        found["weights"] = folder_fingerprint(checkpoint, f"{setting}.dist_checkpointing_path", memory, say)
        found["configuration"] = model_fingerprint(path, f"{at}.path", memory, weights=False)
    else:
        found["weights"] = model_fingerprint(path, f"{at}.path", memory, say=say)
    if other := model.get("hf_config_path"):
        found["configuration"] = model_fingerprint(_local(other), f"{at}.hf_config_path", memory, weights=False)
    modules = model.get("external_lib") or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    modules += [name.strip() for name in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",") if name.strip()]
    if foreign := sorted({name for name in modules if not name.startswith("fgrpo_plugin")}):
        found["modules"] = {name: _code(name, memory) for name in foreign}
    return found


def reference_section(config: Any) -> Any:
    """verl's section that configures the reference."""
    return config.actor_rollout_ref["actor" if reference_is_in_actor(config) else "ref"]


def reference_engine(config: Any) -> tuple[str, Any]:
    """The name of its engine's section, and that section."""
    section = reference_section(config)
    strategy = str(section.get("strategy"))
    name = {"megatron": "megatron", "veomni": "veomni"}.get(strategy, "fsdp_config")
    return name, section.get(name) or {}


def reference_dtype(config: Any) -> str:
    """The number format in which the reference computes, as the configuration names it."""
    name, engine = reference_engine(config)
    if name == "megatron":
        return str(engine.get("dtype", "bfloat16"))
    # Without the section verl computes in bfloat16.
    return str((engine.get("mixed_precision") or {}).get("param_dtype", "bf16"))


def _changing(section: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else dict(section)
    assert isinstance(values, Mapping)
    return {str(key): value for key, value in values.items() if key not in NEUTRAL}


def _local(path: str) -> str:
    """A model that verl itself fetches (``hdfs://``), as the folder to which it has."""
    if "://" not in str(path):
        return str(path)
    from verl.utils.fs import copy_to_local

    return str(copy_to_local(str(path)))


def _code(name: str, memory: Path) -> str | None:
    """A module that verl imports for the model, by the content of its files; None where it is built in.

    Raises:
        ValueError: there is no such module.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        spec = None
    if spec is None:
        raise ValueError(
            f"actor_rollout_ref.model.external_lib or VERL_USE_EXTERNAL_MODULES names {name}, which is no module here."
        )
    if not spec.has_location or spec.origin is None:
        return None
    file = Path(spec.origin)
    files = file.parent.glob("**/*.py") if file.name == "__init__.py" else [file]
    return files_fingerprint(files, file.parent, memory, lambda line: None)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
