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


def load(place, split="train", **settings):
    table = tables.load(str(place), split, split_setting="--split", **settings)
    return table, list(table.rows)


def test_a_file_has_the_same_columns_and_rows_however_it_is_read(file):
    assert tables.columns(file) == ["prompt", "answer"]
    assert tables.rows(file) == ROWS
    table, rows = load(file, "any split")
    assert rows == ROWS and table.columns in (None, ["prompt", "answer"]) and table.progress() == 1.0


def test_values_keep_the_type_that_they_have_in_the_file(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"b": "2024-01-01"}\n{"a": 0.5, "c": "007"}\n{"a": "x\u2028y\x85z"}\r\n')
    expected = [{"a": 1}, {"b": "2024-01-01"}, {"a": 0.5, "c": "007"}, {"a": "x\u2028y\x85z"}]
    assert tables.rows(file) == load(file)[1] == expected


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["lines.jsonl", "lines.json", "list over several lines.json"])
def test_compressed_files_are_read(name, ending, tmp_path):
    import gzip

    import pyarrow as pa

    file = tmp_path / (name + ending)
    content = WRITTEN[name].encode()
    file.write_bytes(gzip.compress(content) if ending == ".gz" else pa.compress(content, "zstd", asbytes=True))
    assert load(file)[1] == ROWS
    with pytest.raises(ValueError, match=r"^the ending '\.(gz|zst)' is none of .parquet, .json, .jsonl$"):
        tables.rows(file)  # verl does not read these
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError):
        load(file)


def test_a_byte_order_mark_is_no_text_and_another_encoding_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes('{"a": "é"}\n'.encode("utf-8-sig"))
    assert load(file)[1] == [{"a": "é"}]
    file.write_bytes(b'{"a": "x"}\n' + '{"a": "Grüße"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^row 1 is not UTF-8 \(byte 0xfc\); write the file as UTF-8"):
        load(file)


@pytest.mark.parametrize("behind", ['[{"a": 2}]', '{"a": 2}', "]"])
@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_what_stands_behind_a_list_is_not_left_out(tmp_path, between, behind):
    """As where two files of one list each have been put together by `cat`."""
    file = tmp_path / "a.json"
    file.write_text(f'[{{"a": 0}}, {{"a": 1}}]{between}{behind}\n')
    with pytest.raises(ValueError, match=r"^there is more behind its first list, of 2 rows; write one list$"):
        load(file)
    file.write_text(f'[{{"a": 0}}, {{"a": 1}}]{between} \n')
    assert load(file)[1] == [{"a": 0}, {"a": 1}]


def test_utf_16_and_columns_of_one_name_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(ValueError, match=r"row 0 is not UTF-8 .* iconv -f utf-16 -t utf-8"):
        load(tmp_path / "a.jsonl")
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["chosen", "chosen", "x"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"^it has two columns named chosen; rename one$"):
        load(tmp_path / "a.parquet")


def test_the_digest_is_of_the_content(tmp_path):
    import os

    file, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (file, other):
        path.write_text('{"a": 1}\n')
    first = load(file)[0].digest()
    assert first == load(other)[0].digest() == tables.digest(file)
    status = file.stat()
    file.write_text('{"a": 2}\n')
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size, the same time
    assert load(file)[0].digest() != first and load(file)[1] == [{"a": 2}]


def test_progress_is_the_share_that_has_been_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"a": "{"x" * 100}"}}\n' for _ in range(5000)))
    table = tables.load(str(file), "train", split_setting="")
    shares = [table.progress() for _ in table.rows]
    assert shares == sorted(shares) and 0 < shares[1000] < 0.5 < shares[4000] <= 1 == table.progress()


def test_the_columns_cost_one_row_and_a_single_object_is_a_row(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{broken\n')
    assert tables.columns(file) == ["a"]
    with pytest.raises(ValueError, match="row 1 is no JSON: Expecting property name"):
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
        assert load(place, split)[1] == ROWS[:count], place
    with pytest.raises(ValueError, match=r"^it has the splits train, test, not 'dev'; set --split$"):
        tables.load(str(tmp_path / "splits"), "dev", split_setting="--split")


def test_a_file_without_rows_has_none(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    assert load(tmp_path / "a.jsonl")[1] == []
    assert tables.rows(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize("name, text", [("a.jsonl", "1\n2\n"), ("a.json", "[1, 2]"), ("a.parquet", "no parquet")])
def test_what_is_no_table_is_one_line(name, text, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    for read in (tables.columns, tables.rows, load):
        with pytest.raises(ValueError) as error:
            read(file)
        assert type(error.value) is ValueError and 0 < len(str(error.value)) <= 300 and "\n" not in str(error.value)
        assert name == "a.parquet" or str(error.value) == "its first row is not an object"


def test_endings_and_missing_files_are_named(tmp_path):
    for name in ("a.csv", "a.arrow"):
        (tmp_path / name).write_text("x")
        for read in (tables.columns, tables.rows):
            with pytest.raises(ValueError, match=rf"^the ending '{name[1:]}' is none of .parquet, .json, .jsonl$"):
                read(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"^the ending '.csv' is none of .parquet, .json, .jsonl, .arrow \(JSON also with"
    ):
        load(tmp_path / "a.csv")
    for place in (str(tmp_path / "none"), "./none", "none.jsonl"):
        with pytest.raises(ValueError, match=r"^there is no such file or folder$"):
            load(place)
    with pytest.raises(ValueError, match="No such file"):
        tables.rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1}\n[1]\n', "row 1 is not an object"),
        ('{"a": 1}\n"x"\n', "row 1 is not an object"),
        ('[{"a": 1}, 2]', "row 1 is not an object"),
        ('{"a": 1', "row 0 is no JSON"),
        ('[{"a": 1},\n{"a": 2}', "row 0 is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "row 0 is no JSON"),
        ("null", "its first row is not an object"),
        ('{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "row 1 is no JSON: it has two values of a; keep one"),
        ('{"a": {"b": 1, "b": 1}}', "row 0 is no JSON: it has two values of b; keep one"),
    ],
)
def test_what_is_wrong_in_a_json_file_is_named_by_row(text, reason, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        load(file)


def test_a_csv_file_is_text_in_the_columns_of_its_head(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeffgoal,n\r\n"Bake ""bread"", please",1\r\n\r\n"two\nlines é",\r\n'.encode())
    assert tables.csv_rows(file) == [{"goal": 'Bake "bread", please', "n": "1"}, {"goal": "two\nlines é", "n": ""}]
    for content in (b"", b"\n", b"goal\n"):
        file.write_bytes(content)
        assert tables.csv_rows(file) == []


@pytest.mark.parametrize(
    "content, why",
    [
        (b"goal,n\nbake, please,1\n", "row 0 has 3 values for 2 columns; a value with a comma in it is quoted"),
        (b"goal,n\nbake,1\nbake\n", "row 1 has 1 values for 2 columns"),
        (b"goal,goal\na,b\n", "it has two columns named goal; rename one"),
        (b'goal\n"bake\n', "unexpected end of data"),
        (b"goal\ncaf\xe9\n", "it is not UTF-8 .*iconv -f latin1"),
        ("goal\nbake\n".encode("utf-16"), "it is not UTF-8 .*iconv -f utf-16"),
        (b"goal\n" + b"x" * 200_000 + b"\n", "field larger than field limit"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_one_reason(tmp_path, content, why):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=why) as error:
        tables.csv_rows(file)
    assert "\n" not in str(error.value)
