"""Settings of preference data, typed and checked when they are constructed. Knows nothing of verl."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field

from fgrpo_plugin.folders import identity
from fgrpo_plugin.preference.readers import RANKS, READABLE, SCORES
from fgrpo_plugin.typed_settings import Expected, Name, typed_settings

_Files = Annotated[
    list[Name],
    Expected("a list of files, folders or dataset names"),
    BeforeValidator(
        lambda files: [files] if isinstance(files, str) else list(files or []) if _is_list(files) else files
    ),
]
_Split = Annotated[Name, Expected("the name of a split")]


def _is_list(files: Any) -> bool:
    return files is None or isinstance(files, tuple)


@typed_settings()
class PreferenceConfig:
    """Where preference rows come from and how they are drawn: verl's section ``data.preference``.

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    files: _Files = field(default_factory=list)
    """Files, folders or dataset names; see ``fgrpo prefs check``."""
    val_files: _Files = field(default_factory=list)
    """Held-out preference data; their accuracy is reported whenever verl validates."""
    split: _Split = "train"
    """Split of a named or saved dataset, or of a snapshot of one."""
    val_split: _Split = "test"
    """Split of named or saved datasets among ``val_files``."""
    config: Annotated[Name, Expected("the name of a configuration")] | None = None
    """Configuration of a named dataset, or folder in a folder, where there are several."""
    columns: Annotated[dict[str, Any] | None, BeforeValidator(lambda columns: checked_columns(columns) or None)] = None
    """What a format reads: the file's column, ``{prompt: question}``; a list is joined, null leaves a column out."""
    batch_size: Annotated[int, Field(ge=2), Expected("an even number >= 2, half of it for each side")] | None = None
    """Preference rows in an optimiser step, half of them D+; null takes as many as it has on-policy rows."""
    keep_pairs: bool = False
    """Draw whole pairs; false draws each side by itself."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order in which rows are drawn."""
    on_bad_row: Literal["error", "skip"] = "error"
    """``error``, or ``skip`` (counted and reported)."""
    on_too_long: Literal["error", "drop", "truncate"] = "error"
    """``error``, ``drop`` or ``truncate`` (counted and reported), against ``data.max_prompt_length`` and
    ``max_response_length``."""
    on_templated: Literal["error", "skip", "keep"] = "error"
    """Text that holds marks of a chat template or special tokens: ``error``, ``skip`` (counted) or ``keep``."""
    cache_dir: Annotated[Name, Expected("a folder")] | None = None
    """Folder of the reference log-probs and of the rows in tokens; null takes ``~/.cache/fgrpo/reference``."""
    keep_rollout: bool = False
    """With lam = 1: start the rollout engine all the same, for validation by generation."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; name at least one file or dataset, data.preference.files=[...].")
        trained = {name for file in self.files for name in _identity("files", file, self.split, self.config)}
        held_out = {file: _identity("val_files", file, self.val_split, self.config) for file in self.val_files}
        if both := [file for file, names in held_out.items() if names & trained]:
            raise ValueError(f"val_files={both!r:.200} are trained on too; name held-out data.")


def _identity(setting: str, file: str, split: str, config: str | None) -> set[str]:
    """Return `identity`; a name that the file system does not take is refused."""
    try:
        return identity(file, split, config)
    # Too long, in a closed folder, a link to itself, in the home of an unknown user, with a NUL.
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{setting}: {file!r:.200} cannot be looked for ({reason}); correct the name.") from None


def checked_columns(columns: Any) -> dict[str, Any]:
    """Return what a format reads -> column of the file, a list of columns, or None.

    Raises:
        ValueError: it is no such mapping, or no format reads what it names.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f"columns={columns!r:.200} must name columns, for example {{prompt: question}}.")
    for name, given in (columns or {}).items():
        several = isinstance(given, list | tuple) and bool(given)
        if not isinstance(name, str) or (
            given is not None and not all(isinstance(part, str) and part for part in (given if several else [given]))
        ):
            raise ValueError(f"columns={columns!r:.200}: {name!s:.200} must be a column, a list of columns, or null.")
        ranks = [part for part in (given if several else [given]) if str(part).lower().split("_")[-1] in RANKS]
        if ranks and name in set(SCORES) - set(RANKS):
            raise ValueError(
                f"columns={columns!r:.200}: the smallest of ranks is the best; name them {{ranks: {ranks[0]}}}."
            )
        if given is not None and name not in READABLE:
            raise ValueError(
                f"columns={columns!r:.200}: no format reads {name!r:.200}; known are {', '.join(READABLE)}."
            )
    return dict(columns or {})


def named_words(option: str, given: Sequence[str] | None) -> list[tuple[str, str]]:
    """NAME=VALUE of the command line as names and values.

    Raises:
        ValueError: one is not written so.
    """
    for words in given or []:
        if "=" not in words or words.startswith("="):
            raise ValueError(f"{option} {words}: write it as NAME=VALUE.")
    return [(words.partition("=")[0], words.partition("=")[2]) for words in given or []]


def named_values(option: str, given: Sequence[str] | None) -> dict[str, Any]:
    """The same with values in YAML: false, 3, text.

    Raises:
        ValueError: one is not written so, or its value is no YAML.
    """
    found = {}
    for name, value in named_words(option, given):
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{option} {name}={value}: the value is no YAML; put text into quotes.") from None
    return found
