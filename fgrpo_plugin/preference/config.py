"""Settings of preference data, typed and checked when they are constructed. Knows nothing of the host."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgrpo_plugin.folders import identity
from fgrpo_plugin.preference.files import ON_BAD_ROW
from fgrpo_plugin.preference.readers import RANKS, READABLE, SCORES
from fgrpo_plugin.preference.tokens import ON_TEMPLATED, ON_TOO_LONG
from fgrpo_plugin.setting_checks import require_one_of


@dataclass
class PreferenceConfig:
    """Where preference rows come from and how they are drawn: the host's section ``data.preference``.

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    files: list[str] = field(default_factory=list)
    """Files, folders or dataset names; see ``fgrpo prefs check``."""
    val_files: list[str] = field(default_factory=list)
    """Held-out preference data; their accuracy is reported whenever the host validates."""
    split: str = "train"
    """Split of a named or saved dataset."""
    val_split: str = "test"
    """Split of named or saved datasets among ``val_files``."""
    config: str | None = None
    """Configuration of a named dataset, or folder in a folder, where there are several."""
    columns: dict[str, Any] | None = None
    """What a format reads: the file's column, ``{prompt: question}``; a list is joined, null leaves a column out."""
    batch_size: int | None = None
    """Preference rows in an optimiser step, half of them D+; None takes as many as it has on-policy rows."""
    keep_pairs: bool = False
    """Draw whole pairs; False draws each side by itself."""
    seed: int = 0
    """Of the order in which rows are drawn."""
    on_bad_row: str = "error"
    """``error``, or ``skip`` (counted and reported)."""
    on_too_long: str = "error"
    """``error``, ``drop`` or ``truncate`` (counted and reported), against the host's prompt and response lengths."""
    on_templated: str = "error"
    """Text that holds marks of a chat template or special tokens: ``error``, ``skip`` (counted) or ``keep``."""
    cache_dir: str | None = None
    """Folder of the reference log-probs and of the rows in tokens; None takes ``~/.cache/fgrpo/reference``."""
    keep_rollout: bool = False
    """With lam = 1: start the rollout engine all the same, for validation by generation."""

    def __post_init__(self) -> None:
        for name in ("files", "val_files"):
            value = getattr(self, name)
            value = [value] if isinstance(value, str) else list(value or [])
            if not all(isinstance(file, str) and file for file in value):
                raise ValueError(f"{name}={value!r} must be a list of files, folders or dataset names.")
            setattr(self, name, value)
        if not self.files:
            raise ValueError("files is empty; name at least one file or dataset, +data.preference.files=[...].")
        for name in ("split", "val_split"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be the name of a split.")
        if self.config is not None and not isinstance(self.config, str):
            raise ValueError(f"config={self.config!r} must be the name of a configuration.")
        trained = {name for file in self.files for name in identity(file, self.split, self.config)}
        if both := [file for file in self.val_files if identity(file, self.val_split, self.config) & trained]:
            raise ValueError(f"val_files={both} are trained on too; name held-out data.")
        self.columns = checked_columns(self.columns) or None
        for name in ("keep_pairs", "keep_rollout"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be true or false.")
        require_one_of("on_bad_row", self.on_bad_row, ON_BAD_ROW)
        require_one_of("on_too_long", self.on_too_long, ON_TOO_LONG)
        require_one_of("on_templated", self.on_templated, ON_TEMPLATED)
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 2):
            raise ValueError(f"batch_size={self.batch_size!r} must be an even number >= 2, half of it for each side.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be a whole number >= 0.")


def checked_columns(columns: Any) -> dict[str, Any]:
    """What a format reads -> column of the file, a list of columns, or None.

    Raises:
        ValueError: it is no such mapping, or no format reads what it names.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f"columns={columns!r} must name columns, for example {{prompt: question}}.")
    for name, given in (columns or {}).items():
        several = isinstance(given, list | tuple) and bool(given)
        if not isinstance(name, str) or (
            given is not None and not all(isinstance(part, str) and part for part in (given if several else [given]))
        ):
            raise ValueError(f"columns={columns!r}: {name} must be a column, a list of columns, or null.")
        ranks = [part for part in (given if several else [given]) if str(part).lower().split("_")[-1] in RANKS]
        if ranks and name in set(SCORES) - set(RANKS):
            raise ValueError(
                f"columns={columns!r}: the smallest of ranks is the best; name them {{ranks: {ranks[0]}}}."
            )
        if given is not None and name not in READABLE:
            raise ValueError(f"columns={columns!r}: no format reads {name!r}; known are {', '.join(READABLE)}.")
    return dict(columns or {})
