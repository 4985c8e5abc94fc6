"""Checks of a run's inputs that take milliseconds and would otherwise fail minutes later."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin import tables
from fgrpo_plugin.folders import expanded
from fgrpo_plugin.foreign_text import say

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def check_model_input(config: DictConfig) -> None:
    """Check the model folder that the configuration names.

    Raises:
        ValueError: names the setting, what was found and the remedy.
    """
    model = OmegaConf.select(config, "actor_rollout_ref.model.path")
    tokenizer = OmegaConf.select(config, "actor_rollout_ref.model.tokenizer_path")
    if model is not None:
        check_model(str(model), "actor_rollout_ref.model.path", tokenizer=tokenizer is None)


def is_elsewhere(path: str) -> bool:
    """Return whether verl itself fetches (``hdfs://``) or expands (``*``) this name of a file."""
    return any(mark in path for mark in ("://", "*", "?", "["))


def check_data_file(path: str | Path, columns: Iterable[str], setting: str) -> None:
    """Check that a local data file exists, can be read and has the columns that verl reads.

    Args:
        path: a parquet, json or jsonl file; a scheme (``hdfs://``) or a pattern (``*``) is left to verl.
        columns: names that must be there.
        setting: what the user set, for the message.

    Raises:
        ValueError: one sentence that names the setting, what was found and the remedy.
    """
    if is_elsewhere(str(path)):
        return
    file = expanded(path)
    if not file.is_file():
        raise ValueError(f"{setting}={path}: there is no such file; give the path of a .parquet or .jsonl file.")
    try:
        found = tables.columns(file)
    except ValueError as reason:
        raise ValueError(f"{setting}={path}: cannot be read ({reason}).") from reason
    if not found:
        raise ValueError(f"{setting}={path}: holds no rows.")
    missing = [column for column in columns if column not in found]
    if missing:
        remedy = "rename one" + (" or name it in data.prompt_key" if "prompt" in missing else ", or add it")
        raise ValueError(
            f"{setting}={path}: column {', '.join(missing)} is missing (found: {', '.join(found)}); {remedy}."
        )


def check_model(path: str, setting: str, *, tokenizer: bool = True) -> None:
    """Check that a local model folder holds a configuration and a tokenizer; a hub name is left to verl.

    Args:
        path: folder, or a name on a model hub.
        setting: what the user set, for the message.
        tokenizer: whether the tokenizer has to be there too.

    Raises:
        ValueError: one sentence that names the setting, what is missing and the remedy.
    """
    if str(path).startswith("~"):
        raise ValueError(f"{setting}={path}: verl does not expand '~' there; write the folder's full path.")
    folder = Path(path)
    if not folder.is_dir():
        if str(path).startswith(("/", ".")):
            raise ValueError(f"{setting}={path}: there is no such folder; give a local Hugging Face model folder.")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{setting}={path}: config.json is missing; save the model with save_pretrained.")
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{setting}={path}: the model has no tokenizer; save it there with tokenizer.save_pretrained, "
            "or name its folder in actor_rollout_ref.model.tokenizer_path."
        )


def load_tokenizer(model: Path, setting: str, *, has_template: bool = False) -> Any:
    """The Hugging Face tokenizer of a local folder.

    Args:
        model: the folder.
        setting: what the user set, for the message.
        has_template: whether another chat template is given, so that the tokenizer's own may be missing.

    Raises:
        ValueError: it cannot be loaded, or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)  # else it asks at the terminal
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{setting}={model}: its tokenizer cannot be loaded ({reason:.200}).") from None
    if tokenizer.chat_template is None and not has_template:
        raise ValueError(
            f"{setting}={model}: its tokenizer has no chat template; set tokenizer.chat_template and save it."
        )
    return tokenizer


def run_tokenizer(config: DictConfig) -> Any:
    """The tokenizer that verl will load, or None where it is not on this machine."""
    from verl.utils.tokenizer import hf_tokenizer

    model = config.actor_rollout_ref.model
    path = OmegaConf.select(model, "tokenizer_path") or OmegaConf.select(model, "path")
    if path is None:
        return None
    try:
        trusted = bool(OmegaConf.select(model, "trust_remote_code", default=False))
        tokenizer = hf_tokenizer(str(path), trust_remote_code=trusted, local_files_only=True)
    except Exception as error:  # of whatever kind: it is loaded again, with its error, where the run needs it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        say(
            f"fgrpo-plugin: the tokenizer of {path} cannot be loaded here ({reason:.120}): prompts and preference rows "
            "are first rendered in the trainer."
        )
        return None
    template = OmegaConf.select(model, "custom_chat_template")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
