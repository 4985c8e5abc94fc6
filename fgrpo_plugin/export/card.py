"""The model card of an exported folder: what is known of how the model was made, and what is not."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fgrpo_plugin import __version__
from fgrpo_plugin.foreign_text import markdown_text

_PAPER = "https://arxiv.org/abs/2602.05946"
_NAMES = {"f_grpo": "f-GRPO", "f_hal": "f-HAL"}
_LOSS = (
    "preset",
    "divergence",
    "link",
    "alpha",
    "beta",
    "gamma",
    "level",
    "weighting",
    "scale",
    "implicit_reward_clip",
)
_UNKNOWN = "not recorded in the checkpoint"


def model_card(
    record: Mapping[str, Any],
    *,
    step: int | None,
    engine: str,
    form: str,
    dtype: str,
    base_model: str | None,
    hub: str | None = None,
) -> str:
    """README.md of the folder.

    Args:
        record: the run's settings (``host/settings/record.py``); empty where the checkpoint has none.
        step: training step.
        engine: FSDP or Megatron.
        form: ``full weights``, ``LoRA, merged`` or ``LoRA adapter``.
        dtype: of the weights.
        base_model: on a model hub, or a local name; None where it is not known.
        hub: its name on a model hub, to which the card links; None for a local one.
    """
    hub = hub_name(hub)
    algorithm = record.get("algorithm")
    named = _NAMES.get(str(algorithm), algorithm)
    adapter = form == "LoRA adapter"
    head = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": hub} if hub else {}),
        "tags": ["verl", "reinforcement-learning", *([str(algorithm).replace("_", "-")] if named else [])],
    }
    what = base_model.rpartition("/")[2] if base_model else "A model"
    title = "# " + markdown_text(f"{what} trained with {named or 'verl'}")
    rows = [("Base model", base_model), ("Step", _of(step, record.get("total_steps"))), ("Weights", f"{form}, {dtype}")]
    rows += _training(record, named)
    versions = {name: value for name, value in (record.get("versions") or {}).items() if value}
    rows += [("Versions", ", ".join(f"{_package(name)} {value}" for name, value in versions.items()) or None)]
    rows += [("Engine", engine), ("Exported by", f"fgrpo-plugin {__version__}")]
    table = ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows)]
    said = [] if record else ["", "The checkpoint says nothing of its run's settings: it was not saved by this plugin."]
    paper = [f"f-GRPO and f-HAL: Haldar et al., [arXiv 2602.05946]({_PAPER}).", ""] if str(algorithm) in _NAMES else []
    evaluated = "Evaluation: none is recorded here. Licence: that of the base model and of the data."
    lines = ["", title, "", *table, *said, "", *paper, evaluated, "", "```python", *_use(adapter, hub), "```", ""]
    return "\n".join(["---", yaml.safe_dump(head, sort_keys=False) + "---", *lines])


def hub_name(name: Any) -> str | None:
    """A name as a model hub has them, or None: no address, no path, nothing that acts in YAML or code."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if name is None else str(name)


def _training(record: Mapping[str, Any], named: str | None) -> list[tuple[str, Any]]:
    loss, actor, data = (record.get(name) or {} for name in ("f_divergence", "actor", "data"))
    rows: list[tuple[str, Any]] = [("Algorithm", named)]
    rows += [(name, loss[name]) for name in _LOSS if loss.get(name) is not None]
    if "lam" in record:
        schedule = f" at this step, of {loss['lam']}" if isinstance(loss.get("lam"), Mapping) else ""
        rows.append(("lambda", f"{record['lam']:g}{schedule}"))
    rows.append(("Learning rate", actor.get("optim.lr")))
    sizes = {"prompts a step": data.get("train_batch_size"), "a mini-batch": actor.get("ppo_mini_batch_size")}
    sizes["responses a prompt"] = (record.get("rollout") or {}).get("n")
    rows.append(("Batch", ", ".join(f"{value} {name}" for name, value in sizes.items() if value) or None))
    if lora := record.get("lora"):
        rank, alpha = (lora.get(f"lora_{name}", lora.get(name)) for name in ("rank", "alpha"))
        rows.append(("LoRA", f"rank {rank}, alpha {alpha}"))
    rows.append(("Data", ", ".join(data.get("train_files") or []) or None))
    if files := (record.get("preference") or {}).get("files"):
        rows.append(("Preference data", ", ".join(files)))
    return rows


def _of(step: int | None, total: int | None) -> str | None:
    return None if step is None else f"{step} of {total}" if total else str(step)


def _package(name: str) -> str:
    return name.replace("_", "-")


def _cell(value: Any) -> str:
    return _UNKNOWN if value is None else markdown_text(str(value))


def _use(adapter: bool, base_model: str | None) -> list[str]:
    if not adapter:
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base_model or "path/to/the/base/model"}")',
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
    ]
