"""Tables are read alike whatever their file is, and what cannot be read is one reason on one line."""

import json

import pytest

from fgrpo_plugin import tables

ROWS = [{"prompt": f"{i}+1=", "answer": {"value": i + 1}} for i in range(3)]
WRITTEN = {
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines.json": "\n" + "\n\n".join(json.dumps(row) for row in ROWS),
    "list on one line.json": json.dumps(ROWS),
    "list over several lines.json": json.dumps(ROWS, indent=1),
    "list over several lines.jsonl": json.dumps(ROWS, indent=1),
}


@pytest.fixture(autouse=True)
def _library_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=[*WRITTEN, "rows.parquet"])
def file(request, tmp_path):
    import datasets

    path = tmp_path / request.param
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        path.write_text(WRITTEN[request.param])
    return path


def test_a_file_has_the_same_columns_and_rows_however_it_is_read(file):
    assert tables.columns(file) == ["prompt", "answer"]
    assert tables.rows(file) == ROWS
    loaded = tables.load(str(file), "any split", split_setting="--split")
    assert list(loaded) == ROWS and loaded.column_names == ["prompt", "answer"]


def test_rows_keep_the_columns_and_types_that_each_has_and_loaded_columns_have_one_type(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"b": "2024-01-01"}\n{"a": 0.5}\n')
    assert tables.rows(file) == [{"a": 1}, {"b": "2024-01-01"}, {"a": 0.5}]
    loaded = tables.load(str(file), "train", split_setting="--split")
    assert loaded["a"][:] == [1.0, None, 0.5] and isinstance(loaded["a"][0], float)


def test_the_columns_cost_one_row_and_a_single_object_is_a_row(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{broken\n')
    assert tables.columns(file) == ["a"]
    with pytest.raises(ValueError, match="Expecting property name"):
        tables.rows(file)
    file.write_text('{\n"a": 1\n}')
    assert tables.columns(file) == ["a"] and tables.rows(file) == [{"a": 1}]


def test_saved_datasets_arrow_files_and_folders_with_splits(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    for split, count in (("train", 3), ("test", 1)):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS[:count])
        (tmp_path / "folder" / f"{split}.jsonl").write_text(lines)
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for place, split, count in (
        (tmp_path / "saved", "any", 3),
        (arrow, "any", 3),
        (tmp_path / "splits", "train", 3),
        (tmp_path / "splits", "test", 1),
        (tmp_path / "folder", "train", 3),
        (tmp_path / "folder", "test", 1),
    ):
        assert list(tables.load(str(place), split, split_setting="--split")) == ROWS[:count], place
    with pytest.raises(ValueError, match=r"^it has the splits train, test, not 'dev'; set --split$"):
        tables.load(str(tmp_path / "splits"), "dev", split_setting="--split")
    assert tables.has_splits(tmp_path / "splits") and not tables.has_splits(tmp_path / "saved")
    for place in (tmp_path / "saved", tmp_path / "splits", arrow, "owner/name"):
        assert tables.files_of(str(place)) == [str(place)]


def test_a_file_without_rows_has_none(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    loaded = tables.load(str(tmp_path / "a.jsonl"), "train", split_setting="--split")
    assert len(loaded) == 0 and loaded.column_names == []
    assert tables.rows(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize("name, text", [("a.jsonl", "1\n2\n"), ("a.json", "[1, 2]"), ("a.parquet", "no parquet")])
def test_what_is_no_table_is_one_line(name, text, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    readers = [tables.columns, tables.rows]
    if name != "a.json":  # of a list of numbers the library makes a column
        readers.append(lambda file: tables.load(str(file), "train", split_setting="--split"))
    for read in readers:
        with pytest.raises(ValueError) as error:
            read(file)
        assert type(error.value) is ValueError and 0 < len(str(error.value)) <= 200 and "\n" not in str(error.value)
    if name != "a.parquet":
        with pytest.raises(ValueError, match=r"^its first row is not an object$"):
            tables.columns(file)
        with pytest.raises(ValueError, match=r"^a row is not an object$"):
            tables.rows(file)


def test_endings_and_missing_files_are_named(tmp_path):
    for name in ("a.csv", "a.arrow"):
        (tmp_path / name).write_text("x")
        for read in (tables.columns, tables.rows):
            with pytest.raises(ValueError, match=rf"^the ending '{name[1:]}' is none of .parquet, .json, .jsonl$"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match=r"^the ending '.csv' is none of .parquet, .json, .jsonl, .arrow$"):
        tables.load(str(tmp_path / "a.csv"), "train", split_setting="--split")
    for place in (str(tmp_path / "none"), "./none", "none.jsonl"):
        with pytest.raises(ValueError, match=r"^there is no such file or folder$"):
            tables.load(place, "train", split_setting="--split")
    with pytest.raises(ValueError, match="No such file"):
        tables.rows(tmp_path / "none.jsonl")


def test_a_folder_of_one_kind_and_one_split_is_its_files(tmp_path):
    names = ["b.jsonl", "a.json", "readme.md"]  # two endings of one kind
    for name in names:
        (tmp_path / name).write_text("")
    assert tables.files_of(str(tmp_path)) == [str(tmp_path / "a.json"), str(tmp_path / "b.jsonl")]
    (tmp_path / "c.parquet").write_text("")
    with pytest.raises(ValueError, match=r"^the folder holds files of several kinds; name the files$"):
        tables.files_of(str(tmp_path))
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).unlink()
    for name in ("train-0.parquet", "train-1.parquet", "Validation.parquet"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=r"^the folder holds several splits \(train, val\), of which some may be "):
        tables.files_of(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^the folder holds no data files; name the files$"):
        tables.files_of(str(tmp_path / "empty"))
