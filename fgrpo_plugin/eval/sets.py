"""Sets of prompts: files of any kind -> what a model is asked, under ids that say what is asked."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fgrpo_plugin import tables
from fgrpo_plugin.folders import ENDINGS, is_saved, kind_ending

KINDS = (*ENDINGS, ".csv")
_ENDING = re.compile(r"\.(parquet|csv|jsonl?|arrow)(\.gz|\.zst)?$")


class Asked(Protocol):
    """What a model is asked; a frozen dataclass, whose fields its id is made of."""

    @property
    def chat(self) -> tuple[dict[str, str], ...]:
        """Messages."""


Item = TypeVar("Item", bound=Asked)


@dataclass(frozen=True)
class AskedSet(Generic[Item]):
    """A set under the name that tables give it.

    Attributes:
        name: of the file, without its ending.
        asked: id -> what is asked; an id tells of the row and of what is asked.
        repeated: rows that were left out because an earlier one asks the same.
    """

    name: str
    asked: dict[str, Item]
    repeated: int = 0


def files_of_sets(data: Sequence[Path], setting: str = "--data") -> list[Path]:
    """Files as they are, and every file of data in a folder, in the order of names.

    Raises:
        ValueError: one does not exist, or a folder holds none.
    """
    found: list[Path] = []
    for path in data:
        if path.is_dir() and not is_saved(path):
            files = sorted(file for file in path.iterdir() if file.is_file() and kind_ending(file) in KINDS)
            if not files:
                raise ValueError(f"{setting} {path}: the folder holds no file of {', '.join(KINDS)}; name another.")
            found += files
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{setting} {path}: there is no such file or folder; name a file of prompts.")
    return found


def read_set(
    file: Path,
    item: Callable[[Mapping[str, Any], int], Item],
    *,
    limit: int | None = None,
    setting: str = "--data",
    once: bool = False,
) -> AskedSet[Item]:
    """Read one set.

    Args:
        file: of `KINDS`, or a folder that `datasets` has saved.
        item: row and its number -> what is asked, or a ValueError whose text is the reason alone.
        limit: how many, drawn once for all by what is asked; None is all of them.
        setting: that named the file, for the reason.
        once: whether what several rows ask is asked once.

    Raises:
        ValueError: the file cannot be read, holds nothing, or a row is refused.
    """
    try:
        if file.is_file() and kind_ending(file) not in KINDS:
            raise ValueError(f"the ending {file.suffix!r} is none of {', '.join(KINDS)}")
        if file.suffix == ".csv":
            rows: Any = tables.csv_rows(file)
        else:
            rows = tables.load(str(file), "test", split_setting="the split in the folder's name").rows
        items = [item(row, number) for number, row in enumerate(rows)]
    except ValueError as reason:
        raise ValueError(f"{setting} {file}: {str(reason).rstrip('.')}.") from None
    if not items:
        raise ValueError(f"{setting} {file}: it holds no rows.")
    digests = [_digest(one) for one in items]
    first = dict(zip(reversed(digests), reversed(range(len(items))), strict=True))
    numbers = sorted(first.values()) if once else range(len(items))
    kept = sorted(numbers, key=lambda number: digests[number])[:limit] if limit else numbers
    asked = {f"{number}-{digests[number]}": items[number] for number in sorted(kept)}
    return AskedSet(_ENDING.sub("", file.name), asked, len(items) - len(numbers))


def unlike_names(sets: Sequence[AskedSet[Item]]) -> list[AskedSet[Item]]:
    """Refuse sets of the same name; return them as they are.

    Raises:
        ValueError: two have one name.
    """
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sets are called {name}; a table tells sets by the names of files: rename one.")
    return list(sets)


def text_or_chat(given: Any) -> list[dict[str, str]]:
    """Text as one message of the user, messages as they are; nothing where nothing, or not all, is said."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}] if given.strip() else []
    messages = given if isinstance(given, list | tuple) else []
    chat = [dict(message) for message in messages if isinstance(message, Mapping)]
    return chat if all(str(message.get("content") or "").strip() for message in chat) else []


def _digest(item: Any) -> str:
    return hashlib.sha256(repr(astuple(item)).encode()).hexdigest()[:16]
