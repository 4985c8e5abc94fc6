"""A LoRA adapter among a checkpoint's weights: told apart, merged, or written as PEFT's own folder.

verl's merger writes the base model's weights for a LoRA run and the adapter beside them (its issue 7285).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.export.weights import State, check_finite

_PREFIX = "base_model.model."
_MARKS = ("lora_", ".modules_to_save.", ".original_module.", ".adapter_")


def is_adapters(name: str) -> bool:
    """Return whether a weight of a checkpoint belongs to an adapter, of whatever kind."""
    return any(mark in name for mark in _MARKS)


@dataclass(frozen=True)
class Adapter:
    """What LoRA adds to a model: to the weight W of a module, scale B A."""

    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Module -> A, (rank, inputs), and B, (outputs, rank)."""
    r: int
    alpha: float
    more: Mapping[str, Any] = field(default_factory=dict)
    """Of PEFT's settings those that change the scale: use_rslora, rank_pattern, alpha_pattern."""

    def scale(self, module: str) -> float:
        """Return what multiplies B A of a module: alpha / rank, or alpha / sqrt(rank) with ``use_rslora``."""
        alpha = self._of("alpha_pattern", module, self.alpha)
        rank = self._of("rank_pattern", module, self.r)
        return alpha / (rank**0.5 if self.more.get("use_rslora") else rank)

    def _of(self, pattern: str, module: str, default: float) -> float:
        from peft.utils.other import get_pattern_key

        found = self.more.get(pattern) or {}
        return found.get(get_pattern_key(list(found), module), default)


def split(state: State) -> tuple[State, State]:
    """(weights of the model, weights of an adapter) under names without PEFT's additions.

    Raises:
        ValueError: an adapter of a kind other than plain LoRA on linear layers.
    """
    base: State = {}
    adapter: State = {}
    for name, value in state.items():
        plain = name.removeprefix(_PREFIX)
        if ".lora_A." in plain or ".lora_B." in plain:
            adapter[plain.replace(".default.weight", ".weight")] = value
        elif is_adapters(plain):
            raise ValueError(
                f"{name}: fgrpo export knows plain LoRA on linear layers, not this (DoRA, embeddings, "
                "modules_to_save); merge it with PEFT in the program that made it."
            )
        else:
            base[plain.replace(".base_layer.", ".")] = value
    return base, adapter


def adapter_of(weights: State, settings: Mapping[str, Any], origin: str) -> Adapter:
    """An adapter from its weights, checked against its settings.

    Args:
        weights: of `split`.
        settings: r, lora_alpha and what else PEFT has of it, as verl's ``lora_train_meta.json`` or PEFT's
            ``adapter_config.json`` and the run's record say.
        origin: where they were found, for messages.

    Raises:
        ValueError: half of a pair is missing, alpha is not known, or a rank is not what the settings say.
    """
    modules = dict.fromkeys(name.rpartition(".lora_")[0] for name in weights)
    matrices = {}
    for module in modules:
        pair = [weights.get(f"{module}.lora_{part}.weight") for part in "AB"]
        if pair[0] is None or pair[1] is None:
            raise ValueError(f"{origin}: {module} has one of LoRA's two matrices alone; choose another step.")
        matrices[module] = (pair[0], pair[1])
    r, alpha = settings.get("r"), settings.get("lora_alpha")
    if not r or not alpha:
        raise ValueError(f"{origin}: LoRA's rank and alpha are not there, so that it cannot be scaled; add the file.")
    if settings.get("use_dora"):
        raise ValueError(f"{origin}: DoRA is not known to fgrpo export; merge it with PEFT.")
    patterns = ("use_rslora", "rank_pattern", "alpha_pattern")
    found = Adapter(matrices, int(r), float(alpha), {name: settings[name] for name in patterns if settings.get(name)})
    for module, (a, b) in matrices.items():
        rank = found._of("rank_pattern", module, found.r)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise ValueError(
                f"{origin}: {module} has rank {a.shape[0]} where {rank:g} is recorded (a rank_pattern that is not "
                "known here?); its scale would be a guess."
            )
    return found


def merge(base: State, adapter: Adapter, transposed: Iterable[str], dtype: torch.dtype | None, origin: str) -> None:
    """Add an adapter to the weights of its modules, in place: W + scale B A, computed in float32 and rounded once.

    Args:
        base: the model's weights.
        adapter: what is added.
        transposed: modules that hold W as (inputs, outputs).
        dtype: of the result; None for each weight's own.
        origin: of the base model, for messages.

    Raises:
        ValueError: the base model has no such module, or one of another shape.
    """
    flipped = set(transposed)
    for module, (a, b) in adapter.matrices.items():
        weight = base.get(f"{module}.weight")
        delta = adapter.scale(module) * (b.float() @ a.float())
        delta = delta.T if module in flipped else delta
        if weight is None or weight.shape != delta.shape:
            shape = None if weight is None else tuple(weight.shape)
            raise ValueError(
                f"{origin}: {module} is {shape} there and {tuple(delta.shape)} in the adapter, which was trained on "
                "another model; name that one with --base-model."
            )
        base[f"{module}.weight"] = (weight.float() + delta).to(dtype or weight.dtype)


def write_adapter(
    adapter: Adapter, folder: Path, *, base_model: str | None, linear: Iterable[str], dtype: torch.dtype | None
) -> None:
    """Write PEFT's two files, ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        adapter: what is written.
        folder: where to.
        base_model: a name on a model hub under which PEFT finds the model; None leaves it open, as for a folder, whose
            place is private and means nothing, or another model, elsewhere.
        linear: all modules of the model that could have one: the shortest names that match the adapter's alone are
            written as ``target_modules``.
        dtype: of the matrices; None for their own.

    Raises:
        ValueError: a matrix has entries that are no numbers.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    have, ends = set(adapter.matrices), {module.rpartition(".")[2] for module in adapter.matrices}
    exact = {module for module in linear if module.rpartition(".")[2] in ends} == have
    LoraConfig(
        r=adapter.r,
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,  # type: ignore[arg-type]
        target_modules=sorted(ends if exact else have),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
        **adapter.more,
    ).save_pretrained(str(folder))
    file = folder / "adapter_config.json"  # PEFT writes the modules in an order of chance
    written = json.loads(file.read_text())
    written["target_modules"] = sorted(written["target_modules"])
    file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    tensors = {}
    for module, pair in adapter.matrices.items():
        for part, value in zip("AB", pair, strict=True):
            name = f"{_PREFIX}{module}.lora_{part}.weight"
            tensors[name] = value.to(dtype or value.dtype).contiguous()
            check_finite(name, tensors[name])
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read_adapter(folder: Path) -> tuple[State, dict[str, Any]]:
    """The weights and settings of an adapter folder that Megatron-Bridge or PEFT wrote.

    Raises:
        ValueError: a file of it is missing or cut off.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is half-written ({error}); choose an earlier step with --step.") from None
    return split(weights)[1], settings
