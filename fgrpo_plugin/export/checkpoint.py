"""Which checkpoint a name stands for, and whether it is whole. Reads names and small files alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgrpo_plugin.folders import expanded
from fgrpo_plugin.host.driver.checkpoints import STEP, TRACKER, checkpoint_folders, tracked_step
from fgrpo_plugin.host.settings.record import RECORD_FILE
from fgrpo_plugin.manifest import damage

__all__ = ["TRACKER", "Checkpoint", "find_checkpoint"]
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

Form = Literal["fsdp", "huggingface", "megatron", "adapter"]


@dataclass(frozen=True)
class Checkpoint:
    """An actor's checkpoint of verl."""

    actor: Path
    """Its folder, ``global_step_N/actor``."""
    form: Form
    """How its weights lie there: FSDP's rank files, a Hugging Face model (Megatron's through a bridge, or
    ``hf_model``), Megatron's shards, or Megatron-Bridge's adapter alone."""
    step: int | None
    """Training step, where the folder's name tells it."""
    huggingface: Path | None
    """The folder with configuration and tokenizer, where verl wrote one."""
    ranks: int = 1
    """FSDP's, of whose files each holds a part."""
    newer: tuple[int, ...] = ()
    """Steps after this one whose saving was not finished."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the run kept of its settings (``host/settings/record.py``); empty without."""

    @property
    def engine(self) -> str:
        return "FSDP" if (self.actor / "fsdp_config.json").is_file() else "Megatron"


def find_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint that a folder stands for.

    Args:
        run: a run's checkpoint folder (``trainer.default_local_dir``, or the run folder of a quick start), a
            ``global_step_N`` in it, or the ``actor`` folder in that.
        step: which one, of a run's folder; by default the newest that verl finished.

    Raises:
        ValueError: there is none, or it is not whole; one sentence with the remedy.
    """
    given = expanded(run)
    if not given.is_dir():
        raise ValueError(
            f"RUN={run}: there is no such folder; name a run's checkpoint folder (trainer.default_local_dir), a "
            "global_step_N in it, or the actor folder in that."
        )
    place = given.absolute()
    newer: tuple[int, ...] = ()
    if place.name == "critic":
        raise ValueError(f"RUN={run} is a critic's checkpoint, which is no language model; name the actor beside it.")
    if not (_is_actor(place) or _is_step(place)):
        place, newer = _chosen(place, run, step)
    elif step is not None and _number(place) != step:
        raise ValueError(f"--step={step} with RUN={run}, which is one checkpoint already; leave --step out.")
    actor = place if _is_actor(place) else place / "actor"
    if not actor.is_dir():
        if (place / "critic").is_dir():
            raise ValueError(f"RUN={run}: {place.name} holds a critic alone; name a step that has an actor folder.")
        raise ValueError(
            f"RUN={run}: {place.name} holds no actor folder (verl removes old ones beyond "
            "trainer.max_actor_ckpt_to_keep); choose another step with --step."
        )
    return _looked_at(actor, newer)


def _chosen(place: Path, run: Path, step: int | None) -> tuple[Path, tuple[int, ...]]:
    """The step's folder in a run's, and the newer ones that verl did not finish."""
    inner = place / "checkpoints"  # of a quick start
    if not checkpoint_folders(place) and checkpoint_folders(inner):
        place = inner
    found = checkpoint_folders(place)
    if not found:
        raise ValueError(
            f"RUN={run}: holds no checkpoint (global_step_N); name the folder of trainer.default_local_dir, and see "
            "that trainer.save_freq is above 0."
        )
    if step is not None:
        if step not in found:
            raise ValueError(f"--step={step}: {run} has no such checkpoint; it has {_some(sorted(found))}.")
        return found[step], ()
    finished = tracked_step(place)
    usable = [number for number, folder in found.items() if (folder / "actor").is_dir()]
    if finished in usable:
        usable = [number for number in usable if number <= finished]
    if not usable:
        raise ValueError(
            f"RUN={run}: none of its checkpoints ({_some(sorted(found))}) holds an actor folder; name a run that has."
        )
    last = max(usable)
    return found[last], tuple(sorted(number for number in found if number > last))


def _looked_at(actor: Path, newer: tuple[int, ...]) -> Checkpoint:
    record = _json(actor.parent / RECORD_FILE)
    step = _number(actor)
    nested, flat = actor / "model" / "huggingface", actor / "huggingface"
    huggingface = next((folder for folder in (nested, flat) if (folder / "config.json").is_file()), None)
    _refuse_other_models(actor, huggingface)
    if problem := damage(actor.parent, lambda name: _is_read(name, actor.name)):
        raise ValueError(f"{actor.parent} is damaged: {problem}; choose an earlier step with --step.")

    def made(form: Form, ranks: int = 1) -> Checkpoint:
        return Checkpoint(actor, form, step, huggingface, ranks, newer, record)

    if any(actor.glob("model_world_size_*_rank_*.pt")) or (actor / "fsdp_config.json").is_file():
        ranks = _json(actor / "fsdp_config.json").get("world_size")
        if type(ranks) is not int or ranks < 1:
            raise ValueError(
                _half_written(actor, "fsdp_config.json, which verl writes after the weights, is missing or spoilt")
            )
        if huggingface is None:
            raise ValueError(_half_written(actor, "its huggingface folder has no config.json"))
        if any(actor.glob("model_world_size_*_rank_*.pt")):
            return made("fsdp", ranks)
        if _has_weights(huggingface):
            return made("huggingface")
        raise ValueError(
            f"{actor}: holds no weights; a run saves them with model in "
            "actor_rollout_ref.actor.checkpoint.save_contents."
        )
    if not (actor / "ckpt_contents.json").is_file():
        raise ValueError(
            _half_written(actor, "neither fsdp_config.json nor ckpt_contents.json, which verl writes last, is there")
        )
    adapter = nested / "adapter"
    if (adapter / "adapter_config.json").is_file():
        return made("adapter")
    if huggingface is not None and _has_weights(huggingface):
        return made("huggingface")
    if (actor / "model" / "dist_ckpt" / ".metadata").is_file():
        return made("megatron")
    raise ValueError(
        f"{actor}: holds no weights; a run saves them with model in actor_rollout_ref.actor.checkpoint.save_contents."
    )


def _refuse_other_models(actor: Path, huggingface: Path | None) -> None:
    manifest = _json(actor / "ckpt_contents.json")
    config = {} if huggingface is None else _json(huggingface / "config.json")
    named = " ".join(map(str, config.get("architectures") or []))
    if manifest.get("role") == "critic" or "ForTokenClassification" in named or "ForSequenceClass" in named:
        raise ValueError(f"{actor} is a critic's checkpoint, which is no language model; name the actor's folder.")


def _is_read(name: str, actor: str) -> bool:
    """Return whether an export needs this file of a checkpoint: not an optimiser, whose files may have been removed."""
    folder, _, rest = name.partition("/")
    return folder == actor and not rest.startswith(("optim", "extra"))


def _half_written(actor: Path, what: str) -> str:
    return f"{actor} is half-written: {what}; choose an earlier step with --step."


def _is_actor(folder: Path) -> bool:
    marks = ("fsdp_config.json", "ckpt_contents.json", "huggingface", "model/huggingface", "model/dist_ckpt")
    held = any((folder / mark).exists() for mark in marks) or any(folder.glob("model_world_size_*_rank_*.pt"))
    return held or (folder.name == "actor" and bool(STEP.fullmatch(folder.parent.name)))


def _is_step(folder: Path) -> bool:
    return bool(STEP.fullmatch(folder.name)) or (folder / "actor").is_dir()


def _number(folder: Path) -> int | None:
    """The training step in the name of a checkpoint's folder or of its parent."""
    found = STEP.fullmatch(folder.name) or STEP.fullmatch(folder.parent.name)
    return int(found[1]) if found else None


def _has_weights(folder: Path) -> bool:
    return any(True for pattern in WEIGHTS for _ in folder.glob(pattern))


def _some(steps: list[int]) -> str:
    shown = [str(step) for step in steps]
    return "steps " + ", ".join(shown if len(shown) < 9 else [*shown[:4], "...", *shown[-4:]])


def _json(file: Path) -> dict[str, Any]:
    """A small file's content; empty where it is missing or no JSON object."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
