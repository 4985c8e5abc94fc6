"""Preference files and datasets -> rows, with every row that cannot be used named or counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo_plugin.preference.formats import BadRow, Format, PreferenceRow, detect, rows_of

ON_BAD_ROW = ("error", "skip")
_LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


@dataclass
class Preferences:
    """What was read.

    Attributes:
        rows: in the order of the files.
        formats: file -> name of its format.
        examples: how many examples the files hold.
        skipped: reason -> how many examples were left out for it.
        first_skipped: reason -> the first example that it held for.
        at_mean: responses of scored lists that are neither above nor below their mean.
    """

    rows: list[PreferenceRow] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)
    at_mean: int = 0


def read_preferences(files: Sequence[str | Path], *, split: str = "train", on_bad_row: str = "error") -> Preferences:
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
    if on_bad_row not in ON_BAD_ROW:
        raise ValueError(f"on_bad_row={on_bad_row!r} must be one of {', '.join(ON_BAD_ROW)}.")
    if isinstance(files, str | Path):
        files = [files]
    if not files:
        raise ValueError("data.preference.files is empty; name at least one file or dataset.")
    found = Preferences()
    for source in files:
        examples = _load(str(source), split)
        if not len(examples):
            raise ValueError(f"{source}: holds no rows.")
        format = detect(examples.column_names, str(source))
        found.formats[str(source)] = format.name
        for number, example in enumerate(examples):
            _add(found, example, format, f"{source}: row {number}", on_bad_row)
        found.examples += len(examples)
    if not found.rows:
        raise ValueError(f"{', '.join(map(str, files))}: no row can be used ({_reasons(found)}).")
    return found


def write_preferences(rows: Sequence[PreferenceRow], output: Path) -> None:
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


def _add(found: Preferences, example: dict[str, Any], format: Format, where: str, on_bad_row: str) -> None:
    try:
        rows = rows_of(example, format, where)
    except BadRow as reason:
        if on_bad_row == "error":
            raise ValueError(f"{where}: {reason}; correct it, or set data.preference.on_bad_row=skip.") from None
        found.skipped[str(reason)] += 1
        found.first_skipped.setdefault(str(reason), where)
        return
    if format.name == "scored":
        found.at_mean += len(example["scores"]) - len(rows)
    found.rows += rows


def _reasons(found: Preferences) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in found.skipped.most_common())


def _load(source: str, split: str) -> Any:
    """A `datasets.Dataset`; what the library raises is put into one sentence."""
    import datasets

    path = Path(source).expanduser()
    try:
        if path.is_file():
            kind = _LOADERS.get(path.suffix)
            if kind is None:
                raise ValueError(f"the ending {path.suffix!r} is none of {', '.join(_LOADERS)}")
            return _from_files(kind, [str(path)])
        if path.is_dir():
            return _from_folder(path, split)
        if source.startswith(("/", ".", "~")) or path.suffix in _LOADERS:
            raise ValueError("there is no such file or folder")
        return datasets.load_dataset(source, split=split)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"data.preference.files: {source}: cannot be read ({reason[0]:.200}).") from error


def _from_files(kind: str, files: list[str]) -> Any:
    import datasets

    return datasets.load_dataset(kind, data_files=files, split="train")


def _from_folder(path: Path, split: str) -> Any:
    import datasets

    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"it has the splits {', '.join(saved)}, not {split!r}; set data.preference.split")
            return saved[split]
        return saved
    files = sorted(file for file in path.iterdir() if file.suffix in _LOADERS)
    kinds = {_LOADERS[file.suffix] for file in files}
    if len(kinds) != 1:
        raise ValueError(f"the folder holds {'files of several kinds' if kinds else 'no data files'}; name the files")
    return _from_files(kinds.pop(), [str(file) for file in files])
