"""Settings of preference data, typed and checked when they are constructed. Knows nothing of the host."""

from dataclasses import dataclass, field
from pathlib import Path

from fgrpo_plugin.preference.files import ON_BAD_ROW
from fgrpo_plugin.preference.tokens import ON_TOO_LONG
from fgrpo_plugin.setting_checks import require_one_of
from fgrpo_plugin.tables import ENDINGS, has_splits


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
    cache_dir: str | None = None
    """Folder of the reference log-probs; None takes ``~/.cache/fgrpo/reference``."""
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
        trained = {_identity(file, self.split) for file in self.files}
        if both := [file for file in self.val_files if _identity(file, self.val_split) in trained]:
            raise ValueError(f"val_files={both} are trained on too; name held-out data.")
        for name in ("split", "val_split"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be the name of a split.")
        for name in ("keep_pairs", "keep_rollout"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be true or false.")
        require_one_of("on_bad_row", self.on_bad_row, ON_BAD_ROW)
        require_one_of("on_too_long", self.on_too_long, ON_TOO_LONG)
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 2):
            raise ValueError(f"batch_size={self.batch_size!r} must be an even number >= 2, half of it for each side.")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be a whole number >= 0.")


def _identity(source: str, split: str) -> tuple[str, str | None]:
    """Name data so that two names are equal where the data are: of files without, of datasets with the split."""
    path = Path(source).expanduser()
    if path.suffix in ENDINGS or (path.is_dir() and not has_splits(path)):
        return str(path.resolve()), None
    return (str(path.resolve()) if path.exists() else source), split
