"""Write a Hugging Face model folder: weights in shards of safetensors, configuration, tokenizer and templates."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.export.weights import State, check_finite
from fgrpo_plugin.model_loading import quiet_transformers

SHARD = "5GB"
_NOT_COPIED = ("config.json", "README.md")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def empty_model(huggingface: Path, *, trust: bool = False) -> Any:
    """The model that a configuration describes, without memory for its weights.

    Args:
        huggingface: folder with ``config.json``.
        trust: run the model's own code.

    Raises:
        ValueError: no language model of transformers, or code of its own that is not trusted.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(huggingface, trust_remote_code=trust)
    except Exception as error:  # OSError, ValueError, KeyError, of the model's own code
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{huggingface}/config.json cannot be used ({reason:.160}){_trust(huggingface)}") from None
    named = (config.architectures or [""])[0]
    kind = AutoModelForImageTextToText if "ForConditionalGeneration" in named else AutoModelForCausalLM
    try:
        # What the run attended with: a kernel of its machine, or this package's for a CPU. It is no part of the model.
        with torch.device("meta"), quiet_transformers():
            return kind.from_config(config, trust_remote_code=trust, attn_implementation="eager")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{huggingface}: {named or 'its architecture'} is no language model that transformers builds "
            f"({reason:.160}){_trust(huggingface)}"
        ) from None


def _trust(huggingface: Path) -> str:
    own = any(huggingface.glob("*.py"))
    return "; it has code of its own, which runs with --trust-remote-code." if own else "."


def linear_modules(model: Any) -> tuple[list[str], list[str]]:
    """(modules that LoRA can adapt, those of them that hold their weight as (inputs, outputs))."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    transposed = [name for name, kind in kinds.items() if kind == "Conv1D"]
    return [name for name, kind in kinds.items() if kind == "Linear"] + transposed, transposed


def check_names(state: State, model: Any, origin: str) -> None:
    """Raise unless the weights are those of the model, name by name and shape by shape."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    tied = set(_aliases(model))
    missing = sorted(name for name in expected.keys() - found.keys() if name not in tied)
    if missing:
        raise ValueError(f"{origin}: lacks {len(missing)} weights of its model, {missing[0]} first; choose another.")
    if strange := sorted(found.keys() - expected.keys()):
        critic = " (a critic's head?)" if any("v_head" in name or name.startswith("score") for name in strange) else ""
        raise ValueError(f"{origin}: its configuration names no {strange[0]}{critic}; name an actor's checkpoint.")
    if other := [name for name in sorted(found) if found[name] != expected[name]]:
        name = other[0]
        raise ValueError(
            f"{origin}: {name} is {found[name]}, and {expected[name]} by its configuration, which is another model's; "
            "name that of the weights with --base-model, or choose another step with --step."
        )


def _aliases(model: Any) -> dict[str, str]:
    """Name of a tied weight -> the first name of the same weight; empty where none are tied."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    model.tie_weights()
    first: dict[int, str] = {}
    found = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(value), name) != name:
            found[name] = first[id(value)]
    return found


def write_model(
    state: State,
    model: Any,
    huggingface: Path,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    say: Callable[[str], None],
) -> torch.dtype:
    """Write weights and configuration; `state` is emptied.

    Args:
        state: name -> whole weight.
        model: of `empty_model`.
        huggingface: folder with the configuration of the run.
        folder: where to.
        dtype: of the weights; None for that in which they are.
        say: gets a line before gigabytes are written.

    Returns:
        The precision that the configuration names: that of most weights.

    Raises:
        ValueError: a weight has entries that are no numbers.
        OSError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    for alias, name in _aliases(model).items():
        # Two entries of one weight: transformers would load them and tie nothing.
        held = state.pop(alias, None)
        if held is not None:
            state.setdefault(name, held)
    for name, value in state.items():
        state[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        check_finite(name, state[name])
    sizes: Counter[torch.dtype] = Counter()
    for value in state.values():
        sizes[value.dtype] += value.numel()
    ((most, _),) = sizes.most_common(1)
    size = sum(value.numel() * value.element_size() for value in state.values())
    amount = f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.1f} MiB"
    say(f"writing {amount} of weights ({str(most).removeprefix('torch.')})")
    try:
        with quiet_transformers():
            model.to(dtype=most).save_pretrained(folder, state_dict=state, max_shard_size=SHARD)
    except SafetensorError as error:
        raise OSError(f"{folder}: the weights cannot be written ({error}).") from None
    config = json.loads((folder / "config.json").read_text())
    for name in ("attn_implementation", "_attn_implementation"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return most


def copy_rest(huggingface: Path, folder: Path, *, only: Iterable[str] | None = None, of_run: bool = False) -> None:
    """Copy what else belongs to a model, byte for byte: tokenizer, chat template, generation_config, code.

    Args:
        huggingface: from where.
        folder: where to.
        only: beginnings of names, for an adapter, which has no configuration of a model.
        of_run: whether it is a checkpoint's own folder, in which verl writes no links: what one names elsewhere on this
            machine would be passed on with the model.

    Raises:
        ValueError: a checkpoint's link leads out of its folder.
    """
    begins = None if only is None else tuple(only)
    for file in sorted(huggingface.iterdir()):
        if not file.is_file() or file.name in _NOT_COPIED or file.name.endswith(_WEIGHTS):
            continue
        if file.name.startswith(".") or (begins is not None and not file.name.startswith(begins)):
            continue
        if of_run and not file.resolve().is_relative_to(huggingface.resolve()):
            raise ValueError(f"{file} is a link out of the checkpoint; put the file itself in its place, or remove it.")
        shutil.copyfile(file, folder / file.name)
