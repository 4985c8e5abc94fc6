"""A folder that appears whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from fgrpo_plugin.folders import expanded

_MODEL = ("config.json", "adapter_config.json")


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool, keep: Iterable[Path] = ()) -> Iterator[Path]:
    """A folder to write in, which is given its name at the end; on any error nothing of it remains.

    Args:
        target: the name. What is there is refused, unless it is an empty folder, or a model's and `overwrite`.
        overwrite: replace a model that is there, once the new one is whole.
        keep: folders that are read meanwhile, which the target must not hold or lie in.

    Raises:
        ValueError: the name is taken; one sentence with the remedy.
        OSError: it cannot be written.
    """
    target = expanded(target).absolute()
    refuse_target(target, overwrite=overwrite, keep=keep)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir()
    old = None
    try:
        yield part
        if target.exists():
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(target, old)
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if old is not None and not target.exists():
            os.replace(old, target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def refuse_target(target: Path, *, overwrite: bool, keep: Iterable[Path] = ()) -> None:
    """Raise `new_folder`'s ValueError, before anything is read."""
    target = expanded(target).absolute()
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "cannot be written to" if above.is_dir() else "is no folder"
        raise ValueError(f"--output={target}: {above} {what}; name another place.")
    if not target.exists():
        return
    if not target.is_dir() or target.is_symlink():
        raise ValueError(f"--output={target}: is no folder; name one that does not exist yet.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"--output={target}: exists and is not empty; name another, or replace it with --overwrite.")
    for folder in keep:
        read, written = folder.resolve(), target.resolve()
        if read.is_relative_to(written) or written.is_relative_to(read):
            holds = "holds" if read.is_relative_to(written) else "lies in"
            raise ValueError(f"--output={target}: {holds} {folder}, which is read; name another folder.")
    if not any((target / name).is_file() for name in _MODEL):
        raise ValueError(
            f"--output={target}: is no model's folder ({' or '.join(_MODEL)} is not in it), so --overwrite does not "
            "remove it; name another, or empty it."
        )
