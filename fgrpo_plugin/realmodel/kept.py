"""What a folder was begun with, so that it is not gone on with for anything else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.foreign_text import without_private
from fgrpo_plugin.realmodel.options import RealModelError

PROBLEMS = "PROBLEMS"
"""Setting whose value is a digest, which says nothing to a reader."""


def keep(file: Path, given: Mapping[str, Any]) -> None:
    """Write what a folder is begun with; of one that is there already, refuse what differs.

    Args:
        file: in the folder.
        given: setting -> value that JSON can hold; one that the file does not have yet is added to it.

    Raises:
        RealModelError: another value is there, or the file is spoilt.
    """
    kept = _private(_read(file))  # an older one has the home folder in it
    given = _private(given)
    for name, value in given.items():
        was = kept.get(name, value)
        if was == value:
            continue
        if name == PROBLEMS:
            raise RealModelError(f"{file.parent} was begun with other problems: DATA has changed; name another RUN.")
        was, asked = was or "its default", value or "the default"
        raise RealModelError(f"{file.parent} was begun with {name}={was}; for {asked} name another RUN.")
    if {**kept, **given} != kept:
        write_whole(file, (json.dumps({**kept, **given}) + "\n").encode())


def _private(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are written: two that differ in a secret alone are the same."""
    return {
        name: [*map(without_private, value)] if isinstance(value, list) else without_private(value)
        if isinstance(value, str) else value
        for name, value in given.items()
    }  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RealModelError(f"{file} is spoilt, and it says what the folder was begun with; name another RUN.")
    return found
