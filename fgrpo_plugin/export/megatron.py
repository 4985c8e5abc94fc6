"""Megatron's shards (``megatron.use_dist_checkpointing=true``) under Hugging Face's names, without Megatron or a GPU.

verl's own merger asks for Megatron, a process group and the ``model/huggingface`` folder, which such a run does not
write, and casts to bfloat16.
"""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.export.checkpoint import Checkpoint
from fgrpo_plugin.export.dcp_metadata import PlainReader
from fgrpo_plugin.export.weights import State

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Dense models whose layers have the same parts; others save ``hf_model``."""
_OUTER = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_OTHER = "do not fit the shards: it is another model than was trained; name that one with --base-model"
_IN_LAYER = re.compile(r"decoder\.layers\.(?:(\d+)\.)?(.+)")


def load_shards(checkpoint: Checkpoint, huggingface: Path, say: Callable[[str], None]) -> State:
    """The weights, whole, in the precision in which Megatron saved them.

    Args:
        checkpoint: of form ``megatron``.
        huggingface: folder with the model's ``config.json``.
        say: gets a line.

    Raises:
        ValueError: an architecture that is not known, or shards that cannot be read.
    """
    try:
        config = json.loads((huggingface / "config.json").read_text())
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"{huggingface}/config.json cannot be read; copy it anew from the model's folder.") from None
    folder = checkpoint.actor / "model" / "dist_ckpt"
    if family not in FAMILIES:
        raise ValueError(
            f"{folder}: Megatron's shards of a {family} are not known to fgrpo export (known: {', '.join(FAMILIES)}); "
            "let the run write them in Hugging Face's form: hf_model in "
            "actor_rollout_ref.actor.checkpoint.save_contents."
        )
    if lacking := [name for name in ("vocab_size", "num_attention_heads") if name not in config]:
        raise ValueError(f"{huggingface}/config.json names no {lacking[0]}; copy it anew from the model's folder.")
    say(f"reading Megatron's shards of {folder}")
    found: State = {}
    for name, value in _read(folder).items():
        inside = _IN_LAYER.fullmatch(name)
        if inside is None:
            if name not in _OUTER:
                raise ValueError(f"{folder}: {name} is no weight of a {family} that fgrpo export knows.")
            # Megatron pads the vocabulary to what its ranks share.
            found[_OUTER[name]] = value[: config["vocab_size"]] if "norm" not in name else value
            continue
        layers = enumerate(value.unbind()) if inside[1] is None else [(int(inside[1]), value)]
        for layer, part in layers:
            for plain, tensor in _split(inside[2], part, config, folder, huggingface).items():
                found[f"model.layers.{layer}.{plain}"] = tensor
    if config.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)
    return found


def _split(name: str, value: torch.Tensor, config: dict[str, Any], folder: Path, huggingface: Path) -> State:
    """One weight of a layer, or those that Megatron holds in one: queries, keys and values, or gate and up."""
    if name in _LAYER:
        return {_LAYER[name]: value}
    part = name.rpartition(".")[2]
    if name.startswith("self_attention.linear_qkv."):
        heads = config["num_attention_heads"]
        groups = config.get("num_key_value_heads") or heads
        rows = heads // groups + 2
        if value.shape[0] % (groups * rows):
            raise ValueError(f"{folder}: {heads} heads in {groups} groups, as {huggingface} has them, {_OTHER}.")
        # (groups, queries of a group + its key + its value, width of a head, ...)
        grouped = value.unflatten(0, (groups, rows, -1))
        kinds = {"q": grouped[:, :-2], "k": grouped[:, -2:-1], "v": grouped[:, -1:]}
        return {f"self_attn.{kind}_proj.{part}": values.flatten(0, 2) for kind, values in kinds.items()}
    if name == "mlp.linear_fc1.weight":
        gate, up = value.chunk(2)
        return {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}
    raise ValueError(f"{folder}: {name} is no weight of a layer that fgrpo export knows.")


def _read(folder: Path) -> State:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        reader = PlainReader(folder)
        stored = reader.read_metadata().state_dict_metadata
        sizes = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
        found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in sizes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process reads alone
            dcp.load(found, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is no Exception; it holds those of the ranks
        held = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        reason = (str(held).splitlines() or [type(held).__name__])[0]
        raise ValueError(f"{folder} is half-written ({reason:.200}); choose an earlier step with --step.") from None
    return found
