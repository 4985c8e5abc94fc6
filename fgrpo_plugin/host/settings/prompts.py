"""Checks of a run's prompts, on some of their rows, of what would fail once the models are loaded."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin import tables
from fgrpo_plugin.folders import expanded, identity
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.settings.agent_loops import COLUMN, AgentLoops, check_agent_loops
from fgrpo_plugin.host.settings.inputs import check_data_file, is_elsewhere
from fgrpo_plugin.host.settings.rewards import (
    check_reward_function,
    check_reward_manager,
    reads_rows,
    reward_problem,
    uses_custom_reward,
)
from fgrpo_plugin.host.settings.workers import object_of

ROWS_LOOKED_AT = 512
ROLLOUT_N = "__rollout_n__"
"""verl's column for the number of responses to one prompt."""
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
    check_reward_manager(config)
    check_reward_function(config)
    loops = check_agent_loops(config, tokenizer)
    if OmegaConf.select(config, "data.custom_cls.path") is not None:
        _check_dataset_class(config)
        return  # it reads what it likes
    _say_what_is_not_held_out(config)
    render = _renderer(config, tokenizer)
    for key in ("data.train_files", "data.val_files"):
        files = _files(config, key)
        trained = key == "data.train_files"
        if trained and not files:
            raise ValueError("data.train_files names no file; set it.")
        # verl puts the files together, and fills the column of loops with None where a file lacks it.
        named = any(COLUMN in _columns(file) for file in files)
        found = [_check_file(config, file, key, render, loops, len(files), named) for file in files]
        if not trained or any(is_elsewhere(file) for file in files):
            continue
        _check_count(config, key, found, render, tokenizer)


def _files(config: DictConfig, key: str) -> list[str]:
    files = OmegaConf.select(config, key)
    return [files] if isinstance(files, str) else [str(file) for file in files or []]


def _columns(file: str) -> list[str]:
    """Of a file on this machine that can be read."""
    try:
        return [] if is_elsewhere(file) else tables.columns(expanded(file))
    except (OSError, ValueError):  # it is refused where it is looked at
        return []


def _check_dataset_class(config: DictConfig) -> None:
    """Load the user's own data set class, as verl does in its task runner.

    Raises:
        ValueError: it is not there, or is no class that verl takes.
    """
    from torch.utils.data import Dataset

    found = object_of(config, "data.custom_cls.path", "data.custom_cls.name")
    if found is not None and not (isinstance(found, type) and issubclass(found, Dataset)):
        name = OmegaConf.select(config, "data.custom_cls.name")
        raise ValueError(f"data.custom_cls.name={name} is no torch.utils.data.Dataset, which verl wants; inherit it.")


def _say_what_is_not_held_out(config: DictConfig) -> None:
    """Many a first run validates on what it trains on: that is said, not refused."""
    trained = {name for file in _files(config, "data.train_files") for name in identity(file, "train")}
    for file in _files(config, "data.val_files"):
        if identity(file, "train") & trained:
            say(f"fgrpo-plugin: data.val_files={file} is trained on too: validation tells nothing of held-out prompts.")


def row_problem(row: Mapping[str, Any], prompt_key: str, render: Render | None) -> str | None:
    """Return why verl could not render the prompt of this row, or None.

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
        if not isinstance(message.get("role"), str) or (
            message.get("content") is None and not message.get("tool_calls")
        ):
            return f"{prompt_key!r} has a message without role or content: {dict(message)!r:.80}"
    if render is None:
        return None
    try:
        text = render(prompt)
    except Exception as error:  # of whatever kind the template raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        parts = any(isinstance(message.get("content"), list) for message in prompt)
        remedy = "; its content is a list of parts: write it as text" if parts else ""
        return f"the model's chat template cannot render {prompt_key!r} ({reason:.120}){remedy}"
    plain = _plain(text)
    for message in prompt:
        content = message.get("content")
        if message["role"] in ("assistant", "tool") or content is None:
            continue  # templates change these on purpose: earlier reasoning is left out, results are written as JSON
        written_out = not isinstance(content, str | int | float) and repr(content)[:20] in text
        if written_out or not all(_plain(part) in plain for part in _contents(content)):
            return (
                f"the model's chat template does not render the {message['role']}'s content as text "
                f"({content!r:.60}); write it as text, or take another template"
            )
    return None


def _plain(text: str) -> str:
    return " ".join(text.split())


def _contents(content: Any) -> list[str]:
    if isinstance(content, str | int | float):
        return [str(content)]
    parts = content if isinstance(content, list) else [content]
    return [str(part["text"]) for part in parts if isinstance(part, Mapping) and part.get("text")]


def _check_file(
    config: DictConfig, file: str, key: str, render: Render | None, loops: AgentLoops, files: int, named: bool
) -> Iterator[list[Mapping[str, Any]]]:
    """Look at the first rows of a file; its prompts, to be read on where more of them are asked for."""
    prompt_key = str(OmegaConf.select(config, "data.prompt_key", default="prompt"))
    check_data_file(file, [prompt_key], key)
    if is_elsewhere(file):
        return iter(())
    trained = key == "data.train_files"
    read = OmegaConf.select(config, f"data.{'train' if trained else 'val'}_max_samples") or -1
    shuffled = OmegaConf.select(config, "data.shuffle", default=True)
    most = max(ROWS_LOOKED_AT // files, 32)
    most = min(most, read) if read > 0 and not shuffled else most
    tested = (OmegaConf.select(config, "trainer.test_freq") or -1) > 0
    validates = tested or bool(OmegaConf.select(config, "trainer.val_before_train"))
    read_at_all = trained or validates
    custom, rewarded = uses_custom_reward(config), reads_rows(config) and read_at_all
    media = [str(OmegaConf.select(config, f"data.{name}")) for name in _MEDIA]

    def has_media(row: Mapping[str, Any]) -> bool:
        return any(row.get(name) for name in media)

    rows = iter(_rows(file, key))
    looked_at = list(islice(rows, most))
    named = named or any(COLUMN in row for row in looked_at)
    for number, row in enumerate(looked_at):
        problem = row_problem(row, prompt_key, None if has_media(row) else render)
        problem = problem or (reward_problem(row, custom=custom) if rewarded else None)
        problem = problem or (loops.problem(row, named=named) if read_at_all else None)
        if problem is not None:
            raise ValueError(f"{key}={file}: row {number}: {problem}.")
    if trained and looked_at and ROLLOUT_N in looked_at[0]:
        _check_rollout_n(file, key, config.actor_rollout_ref.rollout.n)
    return ([] if has_media(row) else row.get(prompt_key) or [] for row in chain(looked_at, rows))


def _rows(file: str, key: str) -> Iterable[dict[str, Any]]:
    try:
        yield from tables.load(str(expanded(file)), "train", split_setting=key).rows
    except ValueError as reason:
        raise ValueError(f"{key}={file}: cannot be read ({reason}).") from reason


def _check_count(
    config: DictConfig,
    key: str,
    files: list[Iterator[list[Mapping[str, Any]]]],
    render: Render | None,
    tokenizer: Any,
) -> None:
    """Read on until there is a batch of prompts, short enough where they are filtered; say that others are cut."""
    batch, longest = config.data.train_batch_size, config.data.max_prompt_length
    filtered = bool(OmegaConf.select(config, "data.filter_overlong_prompts"))
    sampled = OmegaConf.select(config, "data.train_max_samples", default=-1)
    prompts = chain.from_iterable(files)
    count, kept = 0, 0
    while kept < batch or count == 0:
        some = list(islice(prompts, max(ROWS_LOOKED_AT, batch)))
        if not some:
            break
        fitting = _fitting(some, longest, render, tokenizer)
        if fitting < len(some) and not filtered and count == 0:
            say(
                f"fgrpo-plugin: {key}: {len(some) - fitting} of {len(some)} prompts are longer than "
                f"data.max_prompt_length={longest}; verl cuts their beginning off. Raise it, or set "
                "data.filter_overlong_prompts=true."
            )
        count += len(some)
        kept += fitting if filtered else len(some)
    if kept < batch and kept < count:
        raise ValueError(
            f"{key}: {kept} of {count} prompts have at most data.max_prompt_length={longest} tokens, which "
            f"data.filter_overlong_prompts keeps, less than a batch of {batch}; raise data.max_prompt_length."
        )
    count = min(kept, sampled) if sampled and sampled > 0 else kept
    if count < batch:
        raise ValueError(
            f"{key}: {count} rows are less than a batch of {batch}, so no step would be made; lower "
            "data.train_batch_size, or give more."
        )


def _fitting(prompts: list[list[Mapping[str, Any]]], longest: int, render: Render | None, tokenizer: Any) -> int:
    """Count those that are short enough; those with images and the like are taken to be, those that fail are not."""
    if render is None:
        return len(prompts)
    texts = []
    failed = 0
    for prompt in filter(None, prompts):
        try:
            texts.append(render(prompt))
        except Exception:  # of whatever kind; verl's filter drops such a row, and the first rows were looked at
            failed += 1
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return len(prompts) - failed - sum(len(row) > longest for row in ids)


def _renderer(config: DictConfig, tokenizer: Any) -> Render | None:
    if tokenizer is None:
        return None
    if tokenizer.chat_template is None:
        raise ValueError(
            "actor_rollout_ref.model.path: its tokenizer has no chat template, so that no prompt can be rendered; save "
            "one with it, or set actor_rollout_ref.model.custom_chat_template."
        )
    given = OmegaConf.select(config, "data.apply_chat_template_kwargs")
    arguments = {**(OmegaConf.to_container(given) if given else {}), "add_generation_prompt": True, "tokenize": False}  # type: ignore[dict-item]
    return lambda messages: tokenizer.apply_chat_template(messages, **arguments)


def _check_rollout_n(file: str, key: str, most: int) -> None:
    """Refuse prompts that ask for more responses than a mini-batch is counted with: they would add optimiser steps."""
    for number, row in enumerate(_rows(file, key)):
        asked = row.get(ROLLOUT_N)
        if not isinstance(asked, int | float) or asked != int(asked) or not 2 <= asked <= most:
            raise ValueError(
                f"{key}={file}: row {number}: {ROLLOUT_N}={asked!r} must be a whole number from 2 to "
                f"actor_rollout_ref.rollout.n={most}; change it, or raise rollout.n."
            )
