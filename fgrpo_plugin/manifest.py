"""A list of a folder's files with their sizes and hashes, by which a damaged one is found and named."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fgrpo_plugin.folders import is_part, write_whole

MANIFEST = "f_divergence_files.json"
"""In the folder whose files it lists."""
WHOLE, ENDS = 64 * 2**20, 2**20
"""Bytes: a larger file than the first is known by its size and by as much of its beginning and of its end as the second
says. Reading hundreds of gigabytes would stop a run for minutes, and the end of what torch saves holds the checksums of
all that is before it."""


def write_manifest(folder: Path, *, whole: int | None = WHOLE, kept: Mapping[str, Any] | None = None) -> None:
    """List all files of a folder that is complete.

    Args:
        folder: where they are, in it and below it.
        whole: bytes up to which all of a file is hashed; None hashes every file as a whole.
        kept: what `read_manifest` shall give back beside the files, as JSON holds it.
    """
    files = {name: known_by(folder / name, whole) for name in _names(folder)}
    _write(folder, {"whole": whole, "files": files, "kept": dict(kept or {})})


def mark_unfinished(folder: Path) -> None:
    """Say that files of this folder are being written: until `write_manifest` lists them it counts as damaged."""
    _write(folder, {"whole": None, "files": None, "kept": {}})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what was kept beside the files; None where there is no manifest.

    Raises:
        ValueError: it is damaged.
    """
    return None if (found := _read(folder)) is None else dict(found["kept"])


def damage(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> str | None:
    """Compare a folder's files with its manifest.

    Args:
        folder: the folder.
        wanted: which files matter, by their name below the folder; the others may be anything.

    Returns:
        The first file that differs and how, in words; None where all are as they were written or there is no manifest.
    """
    try:
        found = _read(folder)
    except ValueError as reason:
        return str(reason)
    if found is None:
        return None
    if found["files"] is None:
        return "its files were still being written when the run ended"
    for name, (size, digest) in found["files"].items():
        if not wanted(name):
            continue
        try:
            now = known_by(folder / name, found["whole"])
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if now[0] != size:
            return f"{name} has {now[0]} bytes and had {size} when it was written"
        if now[1] != digest:
            return f"{name} has another content than was written"
    return None


def _names(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST and not is_part(file))
    return sorted(file.relative_to(folder).as_posix() for file in files)


def known_by(file: Path, whole: int | None = WHOLE) -> list[Any]:
    """Size and SHA-256, of all of it or of its two ends. The size is that of the opened file: a shared disk may tell an
    older one by name."""
    with file.open("rb") as source:
        size = source.seek(0, 2)
        source.seek(0)
        if whole is None or size <= whole:
            return [size, hashlib.file_digest(source, "sha256").hexdigest()]
        found = hashlib.sha256(source.read(ENDS))
        source.seek(-ENDS, 2)
        found.update(source.read(ENDS))
        return [size, found.hexdigest()]


def _write(folder: Path, content: dict[str, Any]) -> None:
    whole = content | {"sha256": _digest(content)}
    write_whole(folder / MANIFEST, (json.dumps(whole, indent=1) + "\n").encode())


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        digest = found.pop("sha256")
        if digest == _digest(found):
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{MANIFEST}, the list of its files, is damaged")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
