"""Preference files and datasets -> rows, with every row that cannot be used named or counted."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fgrpo_plugin import folders, tables
from fgrpo_plugin.foreign_text import printable, without_private
from fgrpo_plugin.preference.formats import Columns, LabelledResponse, Layout, detect, renamed, rows_of
from fgrpo_plugin.preference.messages import BadRow, Notes
from fgrpo_plugin.typed_settings import require_one_of

ON_BAD_ROW = ("error", "skip")


@dataclass
class PreferenceData:
    """What was read.

    Attributes:
        rows: in the order of the files; empty where they were handed on one by one.
        formats: file -> name of its format.
        examples: how many examples the files hold.
        skipped: reason -> how many examples were left out for it.
        first_skipped: reason -> the first example that it held for, and what was found there.
        at_mean: responses of scored lists that are neither above nor below their mean.
        ties: pairs without a preference.
        ignored: file -> columns, and keys of messages, that were not read.
    """

    rows: list[LabelledResponse] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)
    at_mean: int = 0
    ties: int = 0
    ignored: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: BadRow, where: str) -> None:
        """Count an example that cannot be used."""
        text = printable(str(reason))
        self.skipped[text] += 1
        self.first_skipped.setdefault(text, where if reason.sample is None else f"{where}: {reason.sample}")

    def left_out(self) -> list[str]:
        """A line for everything that is not among the rows."""
        lines = [
            f"left out: {count} x {reason} (first: {self.first_skipped[reason]})"
            for reason, count in self.skipped.most_common()
        ]
        if self.at_mean:
            lines.append(f"left out: {self.at_mean} responses at the mean of their scores")
        if self.ties:
            lines.append(f"left out: {self.ties} pairs without a preference")
        return lines + [f"not read: {file}: {', '.join(names)}" for file, names in self.ignored.items() if names]


def read_preferences(
    files: Sequence[str | Path],
    *,
    split: str = "train",
    config: str | None = None,
    columns: Columns | None = None,
    on_bad_row: str = "error",
    said: Callable[[int, Callable[[], float]], None] = lambda rows, share: None,
) -> PreferenceData:
    """Read preference data, detecting the format of each file.

    Args:
        files: .parquet, .json, .jsonl or .arrow files (JSON also as .gz or .zst), folders of one kind of them, folders
            that `datasets` has saved, or names of datasets.
        split: of a named or saved dataset, or a snapshot of one.
        config: of a named dataset or a folder of folders, where there are several.
        columns: what a format reads -> the column of the file; a list is joined by line ends, null leaves a column out.
        on_bad_row: "error" stops at the first row that cannot be used; "skip" leaves it out and counts it.
        said: called after each example with the rows so far and a function that tells the share of the files read.

    Returns:
        Rows, formats and counts.

    Raises:
        ValueError: no files, an unknown setting, a file that is missing, cannot be read, is empty or has no known
            format, or a bad row; the message names file, row, reason and remedy.
    """
    found = PreferenceData()
    stream = stream_preferences(files, found, split=split, config=config, columns=columns, on_bad_row=on_bad_row)
    for rows, share in stream:
        found.rows += rows
        said(len(found.rows), share)
    if not found.rows:
        raise ValueError(f"{', '.join(map(str, files))}: no row can be used ({_reasons(found)}).")
    return found


def stream_preferences(
    files: Sequence[str | Path],
    found: PreferenceData,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Columns | None = None,
    on_bad_row: str = "error",
) -> Iterator[tuple[list[LabelledResponse], Callable[[], float]]]:
    """The rows of one example after the other, and a function that tells the share of all that has been read.

    Args:
        files: as `read_preferences`, and so the other settings.
        found: what is known of the files when they have been read; its rows stay empty.
    """
    require_one_of("on_bad_row", on_bad_row, ON_BAD_ROW)
    if isinstance(files, str | Path):
        files = [files]
    if not files:
        raise ValueError("data.preference.files is empty; name at least one file or dataset.")
    sources = [file for source in files for file in _files_of(str(source), split, config)]
    for place, source in enumerate(sources):
        table = _load(source, split, config)

        def progress(place: int = place, table: tables.Table = table) -> float:
            return (place + table.progress()) / len(sources)

        for rows in _rows(source, table, columns or {}, found, on_bad_row):
            if place:  # two files may have named their pairs alike
                rows = [row if row.pair is None else replace(row, pair=f"{place}|{row.pair}") for row in rows]
            yield rows, progress


def digests_of(files: Sequence[str | Path], *, split: str = "train", config: str | None = None) -> dict[str, str]:
    """File -> hash of its content, of all that `read_preferences` would read.

    Raises:
        ValueError: as `read_preferences`, of what is seen without reading rows.
    """
    sources = [file for source in files for file in _files_of(str(source), split, config)]
    return {source: _load(source, split, config).digest() for source in sources}


def write_preferences(rows: Sequence[LabelledResponse], output: Path) -> None:
    """Write rows in the canonical format, which `read_preferences` reads back as they are.

    Args:
        rows: what to write.
        output: a .parquet file.

    Raises:
        ValueError: another ending.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if output.suffix != ".parquet":
        raise ValueError(f"{output}: the ending must be .parquet.")
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("prompt", pa.list_(message)),
            ("response", pa.string()),
            ("desirable", pa.bool_()),
            ("pair", pa.string()),
            ("source", pa.string()),
        ]
    )
    columns = {
        "prompt": [row.messages for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in ("response", "desirable", "pair", "source")},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), output)


def _rows(
    source: str, table: tables.Table, columns: Columns, found: PreferenceData, on_bad_row: str
) -> Iterator[list[LabelledResponse]]:
    """The rows of a file, example by example; rows of JSON may bring columns that earlier ones lack."""
    source = without_private(source)  # it is kept: in rows, in what is written of them
    notes = Notes([name for name, given in columns.items() if given is None])
    known: dict[str, None] = {}
    layout: Layout | None = None
    halves: dict[str, tuple[bool, int, int] | None] = {}
    number = -1
    examples = iter(table.rows)
    while True:
        try:
            example = next(examples)
        except StopIteration:
            break
        except ValueError as reason:
            raise ValueError(f"data.preference.files: {source}: cannot be read ({reason}).") from reason
        number += 1
        where = f"{source}: row {number}"
        try:
            example = renamed(example, columns)
        except BadRow as reason:
            if layout is None or on_bad_row == "error":
                raise ValueError(f"{where}: {reason}; found are the columns {', '.join(example)}.") from None
            found.skip(reason, where)
            continue
        if layout is None or not example.keys() <= known.keys():
            known |= dict.fromkeys(example)
            now = detect(list(known), source, columns, example)
            if layout is not None and now.names != layout.names:
                raise ValueError(
                    f"{where}: with its columns {', '.join(example)} the file is {now.format.name}, and the rows "
                    f"before are {layout.format.name}; write one file for each, or leave a column out with "
                    "data.preference.columns={name: null}."
                )
            layout = now
        try:
            rows = rows_of(example, layout, where, notes)
            if layout.format.name == "canonical":
                _check_pairs(rows, halves)
        except BadRow as reason:
            if on_bad_row == "error":
                shown = f"{where}: {reason}" + (f": {reason.sample}" if reason.sample else "")
                raise ValueError(
                    f"{shown}; correct it, or set data.preference.on_bad_row=skip (--on-bad-row skip)."
                ) from None
            found.skip(reason, where)
            continue
        yield rows
    if layout is None:
        raise ValueError(f"{source}: holds no rows.")
    found.examples += number + 1
    found.formats[source] = layout.format.name
    found.ignored[source] = [printable(name) for name in (*layout.ignored, *notes.unread)]
    found.at_mean += notes.at_mean
    found.ties += notes.ties


def _check_pairs(rows: Sequence[LabelledResponse], halves: dict[str, tuple[bool, int, int] | None]) -> None:
    """Check that a pair of the canonical format is two responses to one prompt that differ, one of them desirable."""
    for row in rows:
        if row.pair is None:
            continue
        mine = (row.desirable, hash(row.prompt), hash(row.response))
        if row.pair not in halves:
            halves[row.pair] = mine
            continue
        other = halves[row.pair]
        if other is None:
            raise BadRow("its pair has two rows already; give each pair a name of its own", row.pair)
        if other[0] == mine[0] or other[1] != mine[1] or other[2] == mine[2]:
            raise BadRow(
                "its pair is not of two different responses to one prompt, one desirable and one undesirable", row.pair
            )
        halves[row.pair] = None


def _reasons(found: PreferenceData) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in found.skipped.most_common()) or "ties alone"


def _files_of(source: str, split: str, config: str | None) -> list[str]:
    try:
        return folders.files_of(source, split, config, "data.preference.split", "data.preference.config")
    except ValueError as reason:
        raise ValueError(f"data.preference.files: {source}: {reason}.") from None


def _load(source: str, split: str, config: str | None) -> Any:
    try:
        return tables.load(
            source,
            split,
            split_setting="data.preference.split",
            config=config,
            config_setting="data.preference.config",
        )
    except ValueError as reason:
        raise ValueError(f"data.preference.files: {source}: cannot be read ({reason}).") from reason
