"""Checks of a run's inputs that take milliseconds and would otherwise fail minutes later."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin import tables

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def check_inputs(config: DictConfig, *, prompts: bool) -> None:
    """Check the model folder and, where prompts are read, the data files that the configuration names.

    Raises:
        ValueError: names the setting, what was found and the remedy.
    """
    model = OmegaConf.select(config, "actor_rollout_ref.model.path")
    tokenizer = OmegaConf.select(config, "actor_rollout_ref.model.tokenizer_path")
    if model is not None:
        check_model(str(model), "actor_rollout_ref.model.path", tokenizer=tokenizer is None)
    if not prompts or OmegaConf.select(config, "data.custom_cls.path") is not None:
        return  # the user's own data set class reads what it likes
    columns = [str(OmegaConf.select(config, "data.prompt_key", default="prompt"))]
    for key in ("data.train_files", "data.val_files"):
        files = OmegaConf.select(config, key)
        for file in [files] if isinstance(files, str) else files or []:
            check_data_file(file, columns, key)


def check_data_file(path: str | Path, columns: Iterable[str], setting: str) -> None:
    """Check that a local data file exists, can be read and has the columns that verl reads.

    Args:
        path: a parquet, json or jsonl file; a scheme (``hdfs://``) or a pattern (``*``) is left to the host.
        columns: names that must be there.
        setting: what the user set, for the message.

    Raises:
        ValueError: one sentence that names the setting, what was found and the remedy.
    """
    if any(mark in str(path) for mark in ("://", "*", "?", "[")):
        return
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{setting}={path}: there is no such file; give the path of a .parquet or .jsonl file.")
    try:
        found = tables.columns(file)
    except ValueError as reason:
        raise ValueError(f"{setting}={path}: cannot be read ({reason}).") from reason
    missing = [column for column in columns if column not in found]
    if missing:
        remedy = "rename one" + (" or name it in data.prompt_key" if "prompt" in missing else ", or add it")
        raise ValueError(
            f"{setting}={path}: column {', '.join(missing)} is missing (found: {', '.join(found)}); {remedy}."
        )


def check_model(path: str, setting: str, *, tokenizer: bool = True) -> None:
    """Check that a local model folder holds a configuration and a tokenizer; a hub name is left to the host.

    Args:
        path: folder, or a name on a model hub.
        setting: what the user set, for the message.
        tokenizer: whether the tokenizer has to be there too.

    Raises:
        ValueError: one sentence that names the setting, what is missing and the remedy.
    """
    if str(path).startswith("~"):
        raise ValueError(f"{setting}={path}: the host does not expand '~' there; write the folder's full path.")
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


def load_tokenizer(model: Path, setting: str) -> Any:
    """The Hugging Face tokenizer of a local folder.

    Raises:
        ValueError: it cannot be loaded, or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{setting}={model}: its tokenizer cannot be loaded ({reason:.200}).") from None
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{setting}={model}: its tokenizer has no chat template; set tokenizer.chat_template and save it."
        )
    return tokenizer


def has_default_reward(data_source: str) -> bool:
    """Whether verl's own reward function knows this data source; where it does not, it fails in a worker."""
    from verl.utils.reward_score import default_compute_score

    try:
        default_compute_score(data_source, "0", "0", {})
    except NotImplementedError:
        return False
    except Exception:  # it has one, which dislikes this probe
        return True
    return True


def earns_full_reward(data_source: str, response: str, ground_truth: str) -> bool:
    """Whether verl's own reward function gives this response 1, the score of a right answer."""
    from verl.utils.reward_score import default_compute_score

    return default_compute_score(data_source, response, ground_truth) == 1
