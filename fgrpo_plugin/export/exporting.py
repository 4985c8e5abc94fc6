"""From a checkpoint of verl to a folder in Hugging Face's form: which steps, in which order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from fgrpo_plugin.export.card import hub_name, model_card
from fgrpo_plugin.export.checkpoint import Checkpoint, find_checkpoint
from fgrpo_plugin.export.folder import new_folder, refuse_target
from fgrpo_plugin.export.lora import Adapter, adapter_of, is_adapters, merge, read_adapter, split, write_adapter
from fgrpo_plugin.export.megatron import load_shards
from fgrpo_plugin.export.model_folder import check_names, copy_rest, empty_model, linear_modules, write_model
from fgrpo_plugin.export.weights import State, load_model, load_rank_files
from fgrpo_plugin.folders import expanded
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.settings.inputs import TOKENIZER_FILES
from fgrpo_plugin.host.settings.record import public_name

Dtype = Literal["bfloat16", "float32", "as-saved"]
_TOKENIZER = ("tokenizer", "chat_template", "special_tokens", "added_tokens", "vocab", "merges", "spiece")


def export_run(
    run: Path,
    output: Path,
    *,
    step: int | None = None,
    adapter: bool = False,
    dtype: Dtype | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = say,
) -> Path:
    """Write a checkpoint as a folder that ``from_pretrained`` loads, with a model card.

    Args:
        run: as `find_checkpoint` takes it.
        output: the folder; it appears when it is whole.
        step: which checkpoint of a run; by default the newest.
        adapter: write LoRA's adapter as a folder of PEFT; by default it is merged into the model.
        dtype: of the weights; by default bfloat16 for a model and as saved for an adapter.
        base_model: folder or name of the model that was trained, where the checkpoint does not hold it.
        overwrite: replace a model that is there.
        trust_remote_code: run the model's own code.
        say: gets a line a step.

    Returns:
        `output`, absolute.

    Raises:
        ValueError: bad input; one sentence that names the setting and the remedy.
        OSError: the disk.
    """
    output = expanded(output).absolute()
    if dtype is not None and dtype not in get_args(Dtype):
        raise ValueError(f"--dtype={dtype}: choose one of {', '.join(get_args(Dtype))}.")
    checkpoint = find_checkpoint(run, step)
    base_folder = expanded(base_model) if base_model else None
    local = base_folder is not None and base_folder.exists()
    kept = [checkpoint.actor, *([base_folder] if base_folder is not None and local else [])]
    refuse_target(output, overwrite=overwrite, keep=kept)
    newer = f" ({', '.join(map(str, checkpoint.newer))} not finished)" if checkpoint.newer else ""
    say(f"checkpoint: {checkpoint.actor}" + ("" if checkpoint.step is None else f", step {checkpoint.step}{newer}"))
    huggingface = _huggingface(checkpoint, base_model)
    wanted = {None: None if adapter else torch.bfloat16, "as-saved": None}.get(dtype, getattr(torch, str(dtype), None))
    state, found = _read(checkpoint, huggingface, base_model, adapter, trust_remote_code, say)
    if adapter and found is None:
        raise ValueError(f"--adapter with {checkpoint.actor}, which was trained in full; leave --adapter out.")
    model = empty_model(huggingface, trust=trust_remote_code)
    linear, transposed = linear_modules(model)
    origin, of_run = str(checkpoint.actor), huggingface == checkpoint.huggingface
    hub = None if checkpoint.record.get("model_is_local") else checkpoint.record.get("model")
    hub = hub_name(hub or (None if local or checkpoint.record.get("model") else base_model))
    with new_folder(output, overwrite=overwrite, keep=kept) as folder:
        if adapter:
            assert found is not None
            say(f"writing an adapter of rank {found.r} on {len(found.matrices)} modules")
            write_adapter(found, folder, base_model=hub, linear=linear, dtype=wanted)
            copy_rest(huggingface, folder, only=_TOKENIZER, of_run=of_run)
            precision, form = wanted or next(iter(found.matrices.values()))[0].dtype, "LoRA adapter"
        else:
            check_names(state, model, origin)
            form = "full weights"
            if found is not None:
                say(f"merging an adapter of rank {found.r} into {len(found.matrices)} modules")
                merge(state, found, transposed, wanted, base_model or origin)
                form = "LoRA, merged"
            precision = write_model(state, model, huggingface, folder, dtype=wanted, say=say)
            copy_rest(huggingface, folder, of_run=of_run)
        card = model_card(
            checkpoint.record,
            step=checkpoint.step,
            engine=checkpoint.engine,
            form=form,
            dtype=str(precision).removeprefix("torch."),
            base_model=checkpoint.record.get("model") or public_name(base_model),
            hub=hub,
        )
        (folder / "README.md").write_text(card)
        for file in folder.iterdir():  # safetensors' are for the user alone
            file.chmod((folder / "README.md").stat().st_mode)
    say(f"written: {output}")
    return output


def _huggingface(checkpoint: Checkpoint, base_model: str | None) -> Path:
    """The folder with configuration and tokenizer: the checkpoint's, else the base model's."""
    if checkpoint.huggingface is not None:
        return _with_tokenizer(checkpoint.huggingface)
    if base_model is None:
        raise ValueError(
            f"{checkpoint.actor}: holds Megatron's shards without the model's configuration and tokenizer; name the "
            "model that was trained with --base-model."
        )
    return _with_tokenizer(_local(base_model))


def _with_tokenizer(folder: Path) -> Path:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder}: holds no tokenizer; copy that of the model that was trained there.")
    return folder


def _local(model: str) -> Path:
    """A model's folder: itself, or its snapshot from a model hub.

    Raises:
        ValueError: there is none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = expanded(model)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or model.startswith(("/", ".", "~")):
        raise ValueError(f"--base-model={model}: there is no model (config.json) there; name the folder of one.")
    try:
        return Path(snapshot_download(model, ignore_patterns=["*.pth", "*.gguf", "original/*"]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--base-model={model}: neither a folder nor found on the model hub ({reason:.120})."
        ) from None


def _read(
    checkpoint: Checkpoint,
    huggingface: Path,
    base_model: str | None,
    adapter: bool,
    trust: bool,
    say: Callable[[str], None],
) -> tuple[State, Adapter | None]:
    """(weights of the model, adapter): the weights are left out where the adapter alone is asked for."""
    origin = str(checkpoint.actor)
    if checkpoint.form == "adapter":
        folder = huggingface / "adapter"
        weights, settings = read_adapter(folder)
        found = adapter_of(weights, settings, str(folder))
        return ({} if adapter else _base(checkpoint, base_model, trust, say)), found
    if checkpoint.form == "huggingface":
        say(f"reading {huggingface}")
        state = load_model(str(huggingface), "auto", "RUN", trust=trust)
    elif checkpoint.form == "megatron":
        state = load_shards(checkpoint, huggingface, say)
    else:
        state = load_rank_files(checkpoint, say, only=is_adapters if adapter else lambda name: True)
    base, weights = split(state)
    if not weights:
        return base, None
    found = adapter_of(weights, _lora_settings(checkpoint), f"{origin}/lora_train_meta.json")
    if not base and not adapter:  # actor.checkpoint.save_lora_only
        base = _base(checkpoint, base_model, trust, say)
    return base, found


def _lora_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what verl saves of an adapter, rank and alpha, with what the run's record has of it."""
    import json

    try:
        own = json.loads((checkpoint.actor / "lora_train_meta.json").read_text())
    except (OSError, ValueError):
        own = {}
    return {**(checkpoint.record.get("lora") or {}).get("adapter_config", {}), **own}


def _base(checkpoint: Checkpoint, base_model: str | None, trust: bool, say: Callable[[str], None]) -> State:
    name = base_model
    if name is None and not checkpoint.record.get("model_is_local"):
        name = checkpoint.record.get("model")
    if name is None:
        raise ValueError(
            f"{checkpoint.actor}: holds LoRA's adapter without the model; name the model that was trained with "
            "--base-model, or write the adapter alone with --adapter."
        )
    say(f"reading the base model {name}")
    return load_model(str(_local(name)), "auto", "--base-model", trust=trust)
