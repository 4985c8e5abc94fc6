"""Reading tables: parquet, JSON, JSONL and Arrow files, folders of them, and datasets, saved or named.

What cannot be read is a ValueError whose text is the reason alone, on one line: the caller names the setting, the file
and the remedy.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENDINGS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
"""Ending of a file -> the library's name of its kind."""
HOST_ENDINGS = (".parquet", ".json", ".jsonl")
"""What the host reads prompts from, and `columns` and `rows` read."""
_SPLIT = re.compile(r"train|test|val|dev|eval")


def columns(file: Path) -> list[str]:
    """Names of the columns, from the schema of a parquet file or the first row of a JSON file: rows are not read.

    Raises:
        ValueError: the reason.
    """
    with _one_reason():
        _check_ending(file, HOST_ENDINGS)
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_schema(file).names
        with file.open() as lines:
            first = next((line for line in lines if line.strip()), "")
        try:
            row = json.loads(first)  # one object a line
        except ValueError:
            row = json.loads(file.read_text())  # or one list of objects over several lines
        row = row[0] if isinstance(row, list) and row else row
        if not isinstance(row, dict):
            raise ValueError("its first row is not an object")
        return list(row)


def rows(file: Path) -> list[dict[str, Any]]:
    """All rows, each with the columns and types that it has in the file: one JSON object a line, or one list of them.

    Raises:
        ValueError: the reason.
    """
    with _one_reason():
        _check_ending(file, HOST_ENDINGS)
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(file).to_pylist()
        text = file.read_text()
        try:
            whole = json.loads(text)
            found = whole if isinstance(whole, list) else [whole]
        except ValueError:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in found):
            raise ValueError("a row is not an object")
        return found


def load(source: str, split: str, *, split_setting: str, config: str | None = None) -> Any:
    """A `datasets.Dataset`, whose columns have one type each; a JSON file without rows gives one without columns.

    Args:
        source: a file with one of `ENDINGS`, a folder that the library has saved or can load, or a dataset's name.
        split: of a folder or a named dataset.
        split_setting: what the user sets to choose another split, for the reason.
        config: of a named dataset, where it has several.

    Raises:
        ValueError: the reason.
    """
    import datasets

    path = Path(source).expanduser()
    with _one_reason():
        if path.is_file():
            _check_ending(path, tuple(ENDINGS))
            try:
                return datasets.load_dataset(ENDINGS[path.suffix], data_files=[str(path)], split="train")
            except StopIteration:  # what the library makes of an empty JSON file
                return datasets.Dataset.from_dict({})
        if path.is_dir() and _is_saved(path):
            saved = datasets.load_from_disk(str(path))
            if not isinstance(saved, datasets.DatasetDict):
                return saved
            if split not in saved:
                raise ValueError(f"it has the splits {', '.join(saved)}, not {split!r}; set {split_setting}")
            return saved[split]
        if not path.is_dir() and (source.startswith(("/", ".", "~")) or path.suffix in ENDINGS):
            raise ValueError("there is no such file or folder")
        return datasets.load_dataset(str(path) if path.is_dir() else source, config, split=split)


def files_of(source: str) -> list[str]:
    """A folder of data files as its files, so that a row can be named; anything else as it is.

    Raises:
        ValueError: the folder holds no data files, files of several kinds, or several splits.
    """
    path = Path(source).expanduser()
    if not path.is_dir() or _is_saved(path):
        return [source]
    files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    kinds = {ENDINGS[file.suffix] for file in files}
    if len(kinds) != 1:
        what = "files of several kinds" if kinds else "no data files"
        raise ValueError(f"the folder holds {what}; name the files")
    splits = {found.group() for file in files if (found := _SPLIT.match(file.stem.lower()))}
    if len(splits) > 1:
        raise ValueError(
            f"the folder holds several splits ({', '.join(sorted(splits))}), of which some may be meant for "
            "validation; name the files"
        )
    return [str(file) for file in files]


def has_splits(path: Path) -> bool:
    """Whether it is a folder to which the library has saved several splits."""
    return (path / "dataset_dict.json").is_file()


def _is_saved(path: Path) -> bool:
    return has_splits(path) or (path / "dataset_info.json").is_file()


def _check_ending(file: Path, known: tuple[str, ...]) -> None:
    if file.suffix not in known:
        raise ValueError(f"the ending {file.suffix!r} is none of {', '.join(known)}")


@contextmanager
def _one_reason() -> Iterator[None]:
    """What a library raises, of whatever kind and over however many lines, as a ValueError of one line."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ValueError(f"{reason[0]:.200}") from error
