"""Preference files and datasets -> rows, with every row that cannot be used named or counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fgrpo_plugin import tables
from fgrpo_plugin.preference.formats import BadRow, Format, LabelledResponse, detect, rows_of
from fgrpo_plugin.setting_checks import require_one_of

ON_BAD_ROW = ("error", "skip")


@dataclass
class PreferenceData:
    """What was read.

    Attributes:
        rows: in the order of the files.
        formats: file -> name of its format.
        examples: how many examples the files hold.
        skipped: reason -> how many examples were left out for it.
        first_skipped: reason -> the first example that it held for.
        at_mean: responses of scored lists that are neither above nor below their mean.
        ignored: file -> columns that its format does not read.
    """

    rows: list[LabelledResponse] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)
    at_mean: int = 0
    ignored: dict[str, list[str]] = field(default_factory=dict)


def read_preferences(files: Sequence[str | Path], *, split: str = "train", on_bad_row: str = "error") -> PreferenceData:
    """Read preference data, detecting the format of each file.

    Args:
        files: .parquet, .json, .jsonl or .arrow files, folders of one kind of them, folders that `datasets` has saved,
            or names of datasets.
        split: of a named or saved dataset.
        on_bad_row: "error" stops at the first row that cannot be used; "skip" leaves it out and counts it.

    Returns:
        Rows, formats and counts.

    Raises:
        ValueError: no files, an unknown setting, a file that is missing, cannot be read, is empty or has no known
            format, or a bad row; the message names file, row, reason and remedy.
    """
    require_one_of("on_bad_row", on_bad_row, ON_BAD_ROW)
    if isinstance(files, str | Path):
        files = [files]
    if not files:
        raise ValueError("data.preference.files is empty; name at least one file or dataset.")
    found = PreferenceData()
    sources = [file for source in files for file in _files_of(str(source))]
    for place, source in enumerate(sources):
        examples = _load(source, split)
        if not len(examples):
            raise ValueError(f"{source}: holds no rows.")
        format = detect(examples.column_names, source)
        found.formats[source] = format.name
        known = {name for names in format.columns for name in names}
        found.ignored[source] = [name for name in examples.column_names if name not in known]
        first = len(found.rows)
        for number, example in enumerate(examples):
            _add(found, example, format, f"{source}: row {number}", on_bad_row)
        found.examples += len(examples)
        if place:  # two files may have named their pairs alike
            found.rows[first:] = [
                row if row.pair is None else replace(row, pair=f"{place}|{row.pair}") for row in found.rows[first:]
            ]
    if not found.rows:
        raise ValueError(f"{', '.join(map(str, files))}: no row can be used ({_reasons(found)}).")
    return found


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


def _add(found: PreferenceData, example: dict[str, Any], format: Format, where: str, on_bad_row: str) -> None:
    try:
        rows = rows_of(example, format, where)
    except BadRow as reason:
        if on_bad_row == "error":
            raise ValueError(
                f"{where}: {reason}; correct it, or set data.preference.on_bad_row=skip (--on-bad-row skip)."
            ) from None
        found.skipped[str(reason)] += 1
        found.first_skipped.setdefault(str(reason), where)
        return
    if format.name == "scored":
        found.at_mean += len(example["scores"]) - len(rows)
    found.rows += rows


def _reasons(found: PreferenceData) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in found.skipped.most_common())


def _files_of(source: str) -> list[str]:
    try:
        return tables.files_of(source)
    except ValueError as reason:
        raise ValueError(f"data.preference.files: {source}: {reason}.") from None


def _load(source: str, split: str) -> Any:
    try:
        return tables.load(source, split, split_setting="data.preference.split")
    except ValueError as reason:
        raise ValueError(f"data.preference.files: {source}: cannot be read ({reason}).") from reason
