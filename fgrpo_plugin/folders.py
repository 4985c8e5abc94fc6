"""Which files a folder, a split or a name stands for, and whether two names stand for the same data.

What cannot be told is a ValueError whose text is the reason alone: the caller names the setting and the remedy.
"""

import contextlib
import os
import re
import shutil
import time
import uuid
from pathlib import Path

ENDINGS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
"""Ending of a file -> kind. JSON files may be compressed: .gz or .zst behind it."""
COMPRESSIONS = (".gz", ".zst")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "heldout", "holdout"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
}
"""Words of file names -> the split that they name."""
_SHARD = re.compile(r"(.+?)[-_.]\d+[-_.]of[-_.]\d+")
_SIDE_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def expanded(path: str | Path) -> Path:
    """A path with the home folder in place of `~`.

    Raises:
        ValueError: nobody knows that folder: no user has the name, or HOME is not set and the user has no name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path!s:.200}: the home folder that it names is not known; write the whole path") from None


def files_of(
    source: str,
    split: str = "train",
    config: str | None = None,
    split_setting: str = "--split",
    config_setting: str = "--config",
) -> list[str]:
    """A folder of data files as its files, so that a row can be named; anything else as it is.

    Args:
        source: file, folder or name. Of a folder its own files count, or those of its folder `data`, as a snapshot of
            the hub has them.
        split: which files of a snapshot, whose names begin with their split.
        config: subfolder of a folder, which has several.
        split_setting: what the user sets to choose another split, for the reason.
        config_setting: what the user sets to choose another subfolder, for the reason.

    Raises:
        ValueError: the folder holds no data files, files of several kinds, several splits that only a guess could tell
            apart, or other splits than that one.
    """
    path = expanded(source)
    if not path.is_dir() or is_saved(path):
        return [source]
    if config is not None and (path / config).is_dir():
        path = path / config
    files = _chosen_shards(_data_files(path) or _data_files(path / "data"), split, split_setting)
    if not files:
        parts = sorted(part.name for part in path.iterdir() if part.is_dir() and _data_files(part))
        if parts:
            raise ValueError(f"the folder holds the folders {', '.join(parts)}; set {config_setting} to one of them")
    kinds = {ENDINGS[kind_ending(file)] for file in files}
    if len(kinds) != 1:
        what = "files of several kinds" if kinds else "no data files"
        raise ValueError(f"the folder holds {what}; name the files")
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        groups.setdefault(split_of(file), []).append(file)
    if len(groups) > 1:
        named = ", ".join(sorted(name or "a file that names none" for name in groups))
        raise ValueError(
            f"the folder holds several splits ({named}), of which some may be meant for validation; name the files"
        )
    if SPLITS.get(split.lower()) == "train" and groups.keys() & {"test", "validation"}:
        raise ValueError(
            f"its files are named {next(iter(groups))}, not {split!r}; name the files, or set {split_setting}"
        )
    return [str(file) for file in files]


def _chosen_shards(files: list[Path], split: str, split_setting: str) -> list[Path]:
    """Of shards of several splits, `train_prefs-00000-of-00001.parquet`, those of the one; other files as they are."""
    names = {file: found[1] for file in files if (found := _SHARD.match(file.name))}
    if len(names) < len(files) or len(set(names.values())) < 2:
        return files
    wanted = [name for name in set(names.values()) if name == split] or [
        name for name in set(names.values()) if SPLITS.get(name.lower()) == SPLITS.get(split.lower(), split)
    ]
    if len(wanted) != 1:
        raise ValueError(
            f"it has the splits {', '.join(sorted(set(names.values())))}, not {split!r}; set {split_setting}"
        )
    return [file for file in files if names[file] == wanted[0]]


def split_of(file: Path) -> str | None:
    """The split that a word of the file's name tells: train, test or validation; None where there is no such word."""
    name = re.sub(r"h[eo]ld[\W_]?out", "heldout", file.name.lower())
    found = {SPLITS[word] for word in re.findall(r"[a-z]+", name) if word in SPLITS}
    held_out = found - {"train"}
    return min(held_out or found, default=None)


def identity(source: str, split: str, config: str | None = None) -> set[str]:
    """Names of the data, equal where the data are: the files behind a file or folder; name and split of a dataset."""
    path = expanded(source)
    if not path.exists() and not looks_like_a_path(source):
        return {f"{source}|{config}|{split}"}
    if path.is_dir() and is_saved(path):
        part = path / split if has_splits(path) else path
        return {f"{part.resolve()}", *(str(file.resolve()) for file in part.glob("*.arrow"))}
    try:
        files = files_of(source, split, config)
    except ValueError:  # what is wrong with it is said where it is read
        files = [*map(str, _data_files(path)), source]
    return {str(expanded(file).resolve()) for file in files}


def has_splits(path: Path) -> bool:
    """Return whether it is a folder to which the library has saved several splits."""
    return (path / "dataset_dict.json").is_file()


def looks_like_a_path(source: str) -> bool:
    """Return whether a name that is not there is meant as a path, not as a dataset's name."""
    return source.startswith(("/", ".", "~")) or kind_ending(Path(source)) in ENDINGS


def is_saved(path: Path) -> bool:
    """Return whether it is a folder to which the library has saved a dataset, with or without splits."""
    return has_splits(path) or ((path / "dataset_info.json").is_file() and (path / "state.json").is_file())


def kind_ending(file: Path) -> str:
    """The ending that tells the kind: `.jsonl` of both `a.jsonl` and `a.jsonl.gz`."""
    if file.suffix in COMPRESSIONS and Path(file.stem).suffix in (".json", ".jsonl"):
        return Path(file.stem).suffix
    return file.suffix


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (file for file in folder.iterdir() if kind_ending(file) in ENDINGS)
    return sorted(file for file in found if not file.name.startswith(".") and file.name not in _SIDE_FILES)


_PART = re.compile(r"\.[0-9a-f]{32}")
_LEFT_BEHIND = 3600.0
"""Seconds after which nobody is still writing a file of a few megabytes."""


def write_whole(file: Path, content: bytes) -> None:
    """Write under another name, to the disk, and rename: no reader sees a part, whoever else writes or dies.

    What writers that were killed have left beside it is removed once it is an hour old.
    """
    part = file.with_name(f".{uuid.uuid4().hex}")
    try:
        with part.open("wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)  # a full disk needs the room
        raise
    remove_parts(file.parent)


def is_part(file: Path) -> bool:
    """Return whether it is something under the name that `write_whole` gives to what it has not finished."""
    return _PART.fullmatch(file.name) is not None


def remove_parts(folder: Path) -> None:
    """Remove what killed writers have left in a folder; what another may still be writing stays."""
    parts: list[os.DirEntry] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        parts += [entry for entry in entries if _PART.fullmatch(entry.name)]
    for part in parts:
        with contextlib.suppress(OSError):  # another was first, or it is another user's
            if time.time() - part.stat().st_mtime > _LEFT_BEHIND:
                shutil.rmtree(part) if part.is_dir(follow_symlinks=False) else os.unlink(part)
