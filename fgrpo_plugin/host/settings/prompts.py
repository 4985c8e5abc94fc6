"""Checks of a run's prompts, on some of their rows, of what would fail once the models are loaded."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin import tables
from fgrpo_plugin.folders import identity
from fgrpo_plugin.host.settings.inputs import check_data_file, is_elsewhere
from fgrpo_plugin.host.settings.rewards import check_reward_function, reads_rows, reward_problem, uses_custom_reward

ROWS_LOOKED_AT = 512
_MEDIA = ("image_key", "video_key", "audio_key")

Render = Callable[[list[Mapping[str, Any]]], str]


def check_prompts(config: DictConfig, tokenizer: Any) -> None:
    """Refuse data files whose prompts cannot be rendered or rewarded, or of which no batch can be made.

    Args:
        config: verl's whole configuration.
        tokenizer: the run's, or None where it is not on this machine: then nothing is rendered.

    Raises:
        ValueError: names the setting, the row and the remedy.
    """
    check_reward_function(config)
    if OmegaConf.select(config, "data.custom_cls.path") is not None:
        return  # the user's own data set class reads what it likes
    _say_what_is_not_held_out(config)
    render = _renderer(config, tokenizer)
    for key in ("data.train_files", "data.val_files"):
        files = _files(config, key)
        trained = key == "data.train_files"
        batch = (OmegaConf.select(config, "data.gen_batch_size") or config.data.train_batch_size) if trained else 1
        looked_at: list[list[Mapping[str, Any]]] = []
        for file in files:
            looked_at += _check_file(config, file, key, render, most=max(ROWS_LOOKED_AT, batch) - len(looked_at))
        if not files or any(is_elsewhere(file) for file in files):
            continue
        most = OmegaConf.select(config, "data.train_max_samples", default=-1) if trained else -1
        count = min(len(looked_at), most) if most and most > 0 else len(looked_at)
        if count < batch:
            raise ValueError(
                f"{key}: {count} rows are less than a batch of {batch}, so no step would be made; lower "
                "data.train_batch_size, or give more."
            )
        if render is not None:
            _check_lengths(config, key, looked_at, render, tokenizer, batch)


def _files(config: DictConfig, key: str) -> list[str]:
    files = OmegaConf.select(config, key)
    return [files] if isinstance(files, str) else [str(file) for file in files or []]


def _say_what_is_not_held_out(config: DictConfig) -> None:
    """Many a first run validates on what it trains on: that is said, not refused."""
    trained = {name for file in _files(config, "data.train_files") for name in identity(file, "train")}
    for file in _files(config, "data.val_files"):
        if identity(file, "train") & trained:
            print(
                f"fgrpo-plugin: data.val_files={file} is trained on too: validation tells nothing of held-out prompts.",
                flush=True,
            )


def row_problem(row: Mapping[str, Any], prompt_key: str, render: Render | None) -> str | None:
    """Why verl could not render the prompt of this row, or None.

    Args:
        row: of a data file.
        prompt_key: verl's `data.prompt_key`.
        render: messages -> text by the model's chat template, or None where it is not known.
    """
    prompt = row.get(prompt_key)
    if isinstance(prompt, str):
        return f"{prompt_key!r} is text; verl renders messages: store a list of objects with role and content"
    if not isinstance(prompt, list) or not prompt or not all(isinstance(message, Mapping) for message in prompt):
        return f"{prompt_key!r} must be a list of messages with role and content, not {prompt!r:.60}"
    for message in prompt:
        if not isinstance(message.get("role"), str) or message.get("content") is None:
            return f"{prompt_key!r} has a message without role or content: {dict(message)!r:.80}"
    if render is None:
        return None
    try:
        text = render(prompt)
    except Exception as error:  # of whatever kind the template raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        parts = any(not isinstance(message["content"], str) for message in prompt)
        remedy = "; its content is a list of parts: write it as text" if parts else ""
        return f"the model's chat template cannot render {prompt_key!r} ({reason:.120}){remedy}"
    for message in prompt:
        content = message["content"]
        written_out = not isinstance(content, str) and repr(content)[:20] in text
        if written_out or not all(part in text for part in _contents(content)):
            return (
                f"the model's chat template does not render the {message['role']}'s content as text "
                f"({content!r:.60}); write it as text"
            )
    return None


def _contents(content: Any) -> set[str]:
    if isinstance(content, str):
        return {content.strip()}
    parts = content if isinstance(content, list) else [content]
    return {str(part["text"]).strip() for part in parts if isinstance(part, Mapping) and part.get("text")}


def _check_file(
    config: DictConfig, file: str, key: str, render: Render | None, most: int
) -> list[list[Mapping[str, Any]]]:
    """Look at rows of a file; their prompts."""
    prompt_key = str(OmegaConf.select(config, "data.prompt_key", default="prompt"))
    check_data_file(file, [prompt_key], key)
    if is_elsewhere(file):
        return []
    custom, rewarded = uses_custom_reward(config), reads_rows(config)
    media = [str(OmegaConf.select(config, f"data.{name}")) for name in _MEDIA]
    prompts = []
    for number, row in enumerate(islice(_rows(file, key), max(most, 1))):
        has_media = any(row.get(name) for name in media)
        if number < ROWS_LOOKED_AT:
            problem = row_problem(row, prompt_key, None if has_media else render)
            problem = problem or (reward_problem(row, custom=custom) if rewarded else None)
            if problem is not None:
                raise ValueError(f"{key}={file}: row {number}: {problem}.")
        prompts.append([] if has_media else row[prompt_key])
    return prompts


def _rows(file: str, key: str) -> Iterable[dict[str, Any]]:
    try:
        yield from tables.load(str(Path(file).expanduser()), "train", split_setting=key).rows
    except ValueError as reason:
        raise ValueError(f"{key}={file}: cannot be read ({reason}).") from reason


def _check_lengths(
    config: DictConfig,
    key: str,
    prompts: list[list[Mapping[str, Any]]],
    render: Render,
    tokenizer: Any,
    batch: int,
) -> None:
    longest = config.data.max_prompt_length
    known = [prompt for prompt in prompts[:ROWS_LOOKED_AT] if prompt]
    if not known:
        return
    ids = tokenizer([render(prompt) for prompt in known], add_special_tokens=False, verbose=False)["input_ids"]
    longer = sum(len(row) > longest for row in ids)
    kept = len(known) - longer
    if longer and OmegaConf.select(config, "data.filter_overlong_prompts"):
        whole = len(known) == len(prompts) < ROWS_LOOKED_AT
        if kept == 0 or (whole and kept < batch):
            raise ValueError(
                f"{key}: {kept} of {len(known)} prompts have at most data.max_prompt_length={longest} tokens, which "
                f"data.filter_overlong_prompts keeps, less than a batch of {batch}; raise data.max_prompt_length."
            )
    elif longer:
        print(
            f"fgrpo-plugin: {key}: {longer} of {len(known)} prompts are longer than data.max_prompt_length={longest}; "
            "verl cuts their beginning off. Raise it, or set data.filter_overlong_prompts=true.",
            flush=True,
        )


def _renderer(config: DictConfig, tokenizer: Any) -> Render | None:
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    given = OmegaConf.select(config, "data.apply_chat_template_kwargs")
    arguments = {**(OmegaConf.to_container(given) if given else {}), "add_generation_prompt": True, "tokenize": False}  # type: ignore[dict-item]
    return lambda messages: tokenizer.apply_chat_template(messages, **arguments)
