"""Reading tables: parquet, JSON, JSONL, CSV and Arrow files, and datasets, saved or named; JSON compressed or not.

Values keep the types that they have in the file. What cannot be read is a ValueError whose text is the reason alone, on
one line: the caller names the setting, the file and the remedy.
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fgrpo_plugin.folders import COMPRESSIONS, ENDINGS, expanded, is_saved, kind_ending, looks_like_a_path

HOST_ENDINGS = (".parquet", ".json", ".jsonl")
"""What verl reads prompts from, and `columns` and `rows` read."""


@dataclass
class Table:
    """Rows that are read one after the other.

    Attributes:
        rows: each a dict of column -> value; a JSON row has the columns that are written in it.
        columns: where the file has a schema, else None: the rows tell.
        digest: gives the name of the content; SHA-256 of the file, or the library's fingerprint of a named dataset.
        progress: share of it that has been read, 0 to 1.
    """

    rows: Iterable[dict[str, Any]]
    columns: list[str] | None
    digest: Callable[[], str]
    progress: Callable[[], float] = field(default=lambda: 0.0)


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
        first = next(iter(_json_rows(file, Table((), None, str))), {})
        return list(first)


def rows(file: Path) -> list[dict[str, Any]]:
    """All rows, each with the columns and types that it has in the file: one JSON object a line, or one list of them.

    Raises:
        ValueError: the reason.
    """
    with _one_reason():
        _check_ending(file, HOST_ENDINGS)
        return list(_file_table(file).rows)


def csv_rows(file: Path) -> list[dict[str, str]]:
    """All rows of a CSV file with commas and a head: every value is text.

    Raises:
        ValueError: the reason.
    """
    with _one_reason():
        text = _decoded(file.read_bytes().removeprefix(b"\xef\xbb\xbf"), None)
        head, *cells = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line] or [[]]
        if twice := sorted({name for name in head if head.count(name) > 1}):
            raise ValueError(f"it has two columns named {', '.join(twice)}; rename one")
        for number, line in enumerate(cells):
            if len(line) != len(head):
                raise ValueError(
                    f"row {number} has {len(line)} values for {len(head)} columns; a value with a comma in it is quoted"
                )
        return [dict(zip(head, line, strict=True)) for line in cells]


def load(
    source: str, split: str, *, split_setting: str, config: str | None = None, config_setting: str = "--config"
) -> Table:
    """One source as a table.

    Args:
        source: a file with one of `ENDINGS`, a folder that `datasets` has saved, or a dataset's name.
        split: of a saved or named dataset.
        split_setting: what the user sets to choose another split, for the reason.
        config: of a named dataset, where it has several.
        config_setting: what the user sets to choose another configuration, for the reason.

    Raises:
        ValueError: the reason.
    """
    with _one_reason():
        path = expanded(source)
        if path.is_file():
            _check_ending(path, tuple(ENDINGS))
            table = _file_table(path)
        elif not path.is_dir() and looks_like_a_path(source):
            raise ValueError("there is no such file or folder")
        else:
            table = _dataset(source, path, split, split_setting, config, config_setting)
    table.rows = _guarded(table.rows)
    return table


def digest(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_ending(file: Path, known: tuple[str, ...]) -> None:
    compressed = known == tuple(ENDINGS)
    if (kind_ending(file) if compressed else file.suffix) not in known:
        more = f" (JSON also with {' or '.join(COMPRESSIONS)})" if compressed else ""
        raise ValueError(f"the ending {file.suffix!r} is none of {', '.join(known)}{more}")


def _file_table(file: Path) -> Table:
    kind = ENDINGS[kind_ending(file)]
    table = Table((), None, partial(digest, file))
    if kind == "json":
        table.rows = _json_rows(file, table)
    elif kind == "parquet":
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        table.columns = parquet.schema_arrow.names
        if twice := sorted({name for name in table.columns if table.columns.count(name) > 1}):
            raise ValueError(f"it has two columns named {', '.join(twice)}; rename one")
        table.rows = _batches(parquet.iter_batches(batch_size=1024), table, parquet.metadata.num_rows)
    else:
        import datasets

        data = datasets.Dataset.from_file(str(file))
        table.columns, table.rows = data.column_names, _stored(data, table)
    return table


def _dataset(source: str, path: Path, split: str, split_setting: str, config: str | None, config_setting: str) -> Table:
    import datasets

    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # of releases before 4, which run or ask about a script
    if path.is_dir() and is_saved(path):
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise ValueError(f"it has the splits {', '.join(found)}, not {split!r}; set {split_setting}")
            found = found[split]
        names = [Path(part["filename"]) for part in found.cache_files]
        name = partial(_digest_of_all, names)
    else:
        try:
            found = datasets.load_dataset(str(path) if path.is_dir() else source, config, split=split)
        except ValueError as error:
            if "onfig name is missing" not in str(error):
                raise
            known = re.findall(r"'([^']+)'", str(error))
            raise ValueError(f"it has the configurations {', '.join(known)}; set {config_setting}") from error
        name = partial(str, found._fingerprint)
    table = Table((), found.column_names, name)
    table.rows = _stored(found, table)
    return table


def _batches(batches: Iterable[Any], table: Table, count: int) -> Iterator[dict[str, Any]]:
    done = 0
    for batch in batches:
        yield from batch.to_pylist()
        done += len(batch)
        table.progress = partial(_share, done, count)


def _stored(found: Any, table: Table) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as they are stored: the library would open files, and addresses, that a picture names."""
    return _batches(found.with_format("arrow").iter(batch_size=1024), table, len(found))


def _digest_of_all(files: list[Path]) -> str:
    return hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()


def _share(done: int, count: int) -> float:
    return done / max(count, 1)


def _json_rows(file: Path, table: Table) -> Iterator[dict[str, Any]]:
    """One object a line; or one list of objects, or one object, over as many lines as it likes."""
    size = max(file.stat().st_size, 1)
    with file.open("rb") as raw:
        table.progress = lambda: raw.tell() / size if not raw.closed else 1.0
        content = _decompressed(raw, file.suffix)
        number, begun = 0, False
        for line in content:
            text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if not begun else line, number).strip(" \t\r\n")
            begun = True
            if not text:
                continue
            try:
                row = _parsed(text)
            except ValueError as error:
                if number:
                    raise ValueError(f"row {number} is no JSON: {error}") from None
                row = _whole(text, content, error)
            if number == 0 and isinstance(row, list):
                for place, part in enumerate(row):
                    yield _object(part, place)
                if any(rest.strip() for rest in content):
                    raise ValueError(f"there is more behind its first list, of {len(row)} rows; write one list")
                return
            yield _object(row, number)
            number += 1


def _whole(first: str, content: Iterable[bytes], reason: ValueError) -> Any:
    """Return what begins in the first line and ends in a later one."""
    rest = "".join(_decoded(line, None) for line in content)
    if not rest.strip():
        raise ValueError(f"row 0 is no JSON: {reason}")
    try:
        return _parsed(f"{first}\n{rest}")
    except ValueError as error:
        line = first if not first.startswith(("[", "{")) or (len(first) > 1 and first.endswith("}")) else None
        raise ValueError(f"row 0 is no JSON: {reason if line is not None else error}") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
        raise ValueError(f"it has two values of {', '.join(twice)}; keep one")
    return found


def _decoded(line: bytes, number: int | None) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        where = "it" if number is None else f"row {number}"
        other = "utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
        raise ValueError(
            f"{where} is not UTF-8 (byte 0x{line[error.start]:02x}); write the file as UTF-8, for example "
            f"iconv -f {other} -t utf-8"
        ) from None


def _object(row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"row {number} is not an object" if number else "its first row is not an object")
    return row


def _decompressed(raw: BinaryIO, suffix: str) -> Iterable[bytes]:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
    return raw


@contextmanager
def _one_reason() -> Iterator[None]:
    """Return what a library raises, of whatever kind and over however many lines, as a ValueError of one line."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ValueError(f"{reason[0]:.300}") from error


def _guarded(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with _one_reason():
        yield from rows
