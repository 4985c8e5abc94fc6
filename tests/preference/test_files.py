"""Files of every kind give the same rows; what cannot be used is named or counted."""

import json

import pytest
from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.preference.files import read_preferences, write_preferences
from tests.preference.conftest import lines

PAIRS = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(5)]
ANSWERS = {"chosen": "x", "rejected": "y"}
BAD = {"prompt": "p", "chosen": "same", "rejected": "same"}


def sides(found):
    return [(row.prompt[0][1], row.response, row.desirable) for row in found.rows]


EXPECTED = [(p["prompt"], p[c], c == "chosen") for p in PAIRS for c in ("chosen", "rejected")]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved", "saved splits", "folder", "arrow"])
def test_every_kind_of_file(kind, tmp_path):
    import datasets

    data = datasets.Dataset.from_list(PAIRS)
    path = tmp_path / f"prefs.{kind}"
    if kind == "jsonl":
        lines(path, PAIRS)
    elif kind == "json":
        path.write_text(json.dumps(PAIRS))
    elif kind == "parquet":
        data.to_parquet(path)
    elif kind == "saved":
        data.save_to_disk(path)
    elif kind == "saved splits":
        datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(path)
    elif kind == "folder":
        path.mkdir()
        lines(path / "a.jsonl", PAIRS[:2])
        lines(path / "b.jsonl", PAIRS[2:])
    else:
        data.save_to_disk(tmp_path / "saved")
        path = next((tmp_path / "saved").glob("*.arrow"))
    found = read_preferences([path])
    assert sides(found) == EXPECTED
    assert found.examples == 5 and set(found.formats.values()) == {"paired"}
    file = path / "a.jsonl" if kind == "folder" else path
    assert found.rows[2].source == f"{file}: row 1" == found.rows[2].pair


def test_several_files_of_different_formats(tmp_path):
    first = lines(tmp_path / "a.jsonl", PAIRS)
    second = lines(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "r", "label": False}])
    found = read_preferences([first, second])
    assert sides(found) == [*EXPECTED, ("q", "r", False)]
    assert found.formats == {first: "paired", second: "unpaired"} and found.examples == 6


def test_bad_rows_are_an_error_or_counted(tmp_path):
    file = lines(tmp_path / "a.jsonl", [PAIRS[0], BAD, PAIRS[1], BAD])
    with pytest.raises(
        ValueError, match=r"a.jsonl: row 1: chosen and rejected are the same; correct it, or set .*skip"
    ):
        read_preferences([file])
    found = read_preferences([file], on_bad_row="skip")
    assert sides(found) == EXPECTED[:4] and found.examples == 4
    assert found.skipped == {"chosen and rejected are the same": 2}
    assert found.first_skipped == {"chosen and rejected are the same": f"{file}: row 1"}


def test_scores_at_the_mean_are_counted(tmp_path):
    row = {"prompt": "p", "responses": list("abc"), "scores": [1.0, 0.0, 0.5]}
    found = read_preferences(lines(tmp_path / "a.jsonl", [row, row]))
    assert found.at_mean == 2 and len(found.rows) == 4


def test_converting_keeps_everything(tmp_path):
    mixed = [
        lines(tmp_path / "a.jsonl", PAIRS),
        lines(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "r", "label": 0}]),
    ]
    found = read_preferences(mixed)
    write_preferences(found.rows, tmp_path / "out" / "rows.parquet")
    again = read_preferences([tmp_path / "out" / "rows.parquet"])
    assert again.rows == found.rows and list(again.formats.values()) == ["canonical"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "files is empty"),
        (lambda folder: ["./nowhere.jsonl"], r"\./nowhere.jsonl: cannot be read \(there is no such file or folder\)"),
        (lambda folder: [lines(folder / "a.csv", PAIRS)], r"the ending '\.csv' is none of"),
        (lambda folder: [lines(folder / "a.jsonl", [{"text": "x"}])], "no preference format has the columns text"),
        (lambda folder: [lines(folder / "a.jsonl", [BAD])], "row 0: chosen and rejected are the same"),
        (lambda folder: [folder], "the folder holds no data files"),
        (lambda folder: [lines(folder / "a.jsonl", [])], "a.jsonl: holds no rows"),
        (
            lambda folder: [lines(folder / "train.jsonl", PAIRS), lines(folder / "test-0.jsonl", PAIRS)] and [folder],
            r"several splits \(test, train\)",
        ),
        (
            lambda folder: [lines(folder / "a.jsonl", PAIRS), lines(folder / "b.jsonl", [BAD])] and [folder],
            r"b\.jsonl: row 0: chosen and rejected are the same",
        ),
    ],
)
def test_what_cannot_be_read(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_preferences(make(tmp_path))


def test_unknown_split_and_no_usable_row(tmp_path):
    import datasets

    datasets.DatasetDict(train=datasets.Dataset.from_list(PAIRS)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"it has the splits train, not 'test'; set data\.preference\.split"):
        read_preferences([tmp_path / "saved"], split="test")
    with pytest.raises(ValueError, match=r"no row can be used \(chosen and rejected are the same: 1\)"):
        read_preferences(lines(tmp_path / "a.jsonl", [BAD]), on_bad_row="skip")
    with pytest.raises(ValueError, match="on_bad_row='drop' must be one of error, skip"):
        read_preferences(["x"], on_bad_row="drop")


def test_command_line(tmp_path):
    run = CliRunner().invoke
    good, bad = lines(tmp_path / "good.jsonl", PAIRS), lines(tmp_path / "bad.jsonl", [*PAIRS, BAD])
    assert run(app, ["prefs", "check", good]).exit_code == 0
    assert run(app, ["prefs", "check", bad]).exit_code == 1
    result = run(app, ["prefs", "check", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 2 and "there is no such file" in result.output
    output = tmp_path / "rows.parquet"
    assert run(app, ["prefs", "convert", bad, "--output", str(output)]).exit_code == 2 and not output.exists()
    result = run(app, ["prefs", "convert", bad, "--output", str(output), "--on-bad-row", "skip"])
    assert result.exit_code == 0 and "10 rows of 6 examples" in result.output
    assert sides(read_preferences([output])) == EXPECTED


def test_pairs_of_two_files_are_told_apart_though_both_name_them_alike(tmp_path):
    row = {"prompt": [{"role": "user", "content": "a"}], "pair": "data.jsonl: row 0", "source": "data.jsonl: row 0"}
    both = [{**row, "response": "b", "desirable": True}, {**row, "response": "c", "desirable": False}]
    found = read_preferences([lines(tmp_path / f"{name}.jsonl", both) for name in ("a", "b")])
    pairs = [row.pair for row in found.rows]
    assert len(set(pairs)) == 2 and pairs[0] == pairs[1] and pairs[2] == pairs[3]


def test_brackets_of_users_are_shown_as_they_are(tmp_path):
    odd = [{"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"} for _ in range(2)]
    odd[1]["prompt"][0]["role"] = "[/bot]"
    file, output = lines(tmp_path / "b.jsonl", odd), str(tmp_path / "b.parquet")
    command = ["prefs", "convert", file, "--on-bad-row", "skip", "--output", output]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "row 1: '[/bot]'" in result.output


def test_columns_that_are_not_read_are_named_by_file(tmp_path):
    first = lines(tmp_path / "a.jsonl", [{**row, "note": "s", "id": 1} for row in PAIRS])
    second = lines(tmp_path / "b.jsonl", PAIRS)
    third = lines(tmp_path / "c.jsonl", [{"prompt": [{"role": "user", "content": "a", "name": "Ann"}], **ANSWERS}])
    found = read_preferences([first, second, third])
    assert found.ignored == {first: ["note", "id"], second: [], third: ["prompt[].name"]}
    assert found.left_out() == [f"not read: {first}: note, id", f"not read: {third}: prompt[].name"]
    for command in (["check"], ["convert", "--output", str(tmp_path / "out.parquet")]):
        result = CliRunner().invoke(app, ["prefs", command[0], first, third, *command[1:]], env={"COLUMNS": "300"})
        said = result.output.replace("\n", " ")
        assert "not read: " in said and "note, id" in said and "prompt[].name" in said, said


def test_what_is_skipped_has_one_reason_and_one_sample(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": [{"text": f"Say {i}"}]}], **ANSWERS} for i in range(2000)]
    found = read_preferences([lines(tmp_path / "a.jsonl", [*PAIRS, *rows])], on_bad_row="skip")
    (line,) = found.left_out()
    assert line.startswith("left out: 2000 x 'prompt' has a message whose content is not text (first: ")
    assert line.endswith("a.jsonl: row 5: [{'text': 'Say 0'}])") and len(line) < 300


def test_rows_may_bring_columns_that_earlier_ones_lack(tmp_path):
    late = [*PAIRS, {**PAIRS[0], "note": "x"}, {**PAIRS[1], "system": "Be short."}]
    found = read_preferences([lines(tmp_path / "a.jsonl", late)])
    assert list(found.ignored.values()) == [["note"]] and found.rows[-1].prompt[0] == ("system", "Be short.")
    with pytest.raises(ValueError, match=r"row 5: the column 'tools' conditions the responses"):
        read_preferences([lines(tmp_path / "b.jsonl", [*PAIRS, {**PAIRS[0], "tools": ["x"]}])])
    two = [{"prompt": "p", "completion": "a", "label": True}, {"prompt": "p", "response": "b", "label": False}]
    with pytest.raises(ValueError, match="the columns completion and response could both be meant"):
        read_preferences([lines(tmp_path / "c.jsonl", two)])
    both = [{"prompt": "p", "completion": "a", "label": True}, PAIRS[0]]
    with pytest.raises(ValueError, match=r"fit paired and unpaired"):
        read_preferences([lines(tmp_path / "d.jsonl", both)])
    with pytest.raises(ValueError, match=r"row 1: .*the file is paired, and the rows before are paired_transcripts"):
        turns = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
        read_preferences([lines(tmp_path / "e.jsonl", [turns, PAIRS[0]])])


def test_a_pair_of_the_canonical_format_is_two_rows(tmp_path):
    row = {"prompt": [{"role": "user", "content": "a"}], "pair": 7, "source": "s"}
    rows = [{**row, "response": str(i), "desirable": i % 2 == 0} for i in range(3)]
    found = read_preferences([lines(tmp_path / "a.jsonl", rows[:2])])
    assert [row.pair for row in found.rows] == ["7", "7"]
    with pytest.raises(
        ValueError, match=r"row 2: its pair has two rows already; give each pair a name of its own: '7'"
    ):
        read_preferences([lines(tmp_path / "b.jsonl", rows)])


@pytest.mark.parametrize(
    "change", [{"desirable": True}, {"response": "a"}, {"prompt": [{"role": "user", "content": "other"}]}]
)
def test_a_pair_of_the_canonical_format_is_two_answers_to_one_prompt(change, tmp_path):
    row = {"prompt": [{"role": "user", "content": "q"}], "pair": "p", "source": "s"}
    rows = [{**row, "response": "a", "desirable": True}, {**row, "response": "b", "desirable": False, **change}]
    with pytest.raises(ValueError, match="row 1: its pair is not of two different responses to one prompt"):
        read_preferences([lines(tmp_path / "a.jsonl", rows)])


def test_a_column_that_one_row_lacks_costs_that_row_alone(tmp_path):
    rows = [{"question": "q", **ANSWERS}, {"other": "q", **ANSWERS}, {"question": "r", **ANSWERS}]
    file = lines(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "question"}
    with pytest.raises(ValueError, match=r"row 1: data.preference.columns: there is no column 'question'"):
        read_preferences([file], columns=columns)
    found = read_preferences([file], columns=columns, on_bad_row="skip")
    assert len(found.rows) == 4 and sum(found.skipped.values()) == 1
    with pytest.raises(ValueError, match=r"row 0: .* there is no column 'nope'; found are the columns question"):
        read_preferences([file], columns={"prompt": "nope"}, on_bad_row="skip")


def test_an_empty_first_row_does_not_decide_the_format(tmp_path):
    turns = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    found = read_preferences([lines(tmp_path / "a.jsonl", [{"chosen": "", "rejected": ""}, turns])], on_bad_row="skip")
    assert len(found.rows) == 2 and set(found.formats.values()) == {"paired_transcripts"}


def test_half_a_character_in_a_name_is_printed_as_it_is_written(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"prompt": "p", **ANSWERS, "\ud800k": "x"}])
    output = str(tmp_path / "out.parquet")
    for command in (["check", file], ["convert", file, "--output", output]):
        result = CliRunner().invoke(app, ["prefs", *command], env={"COLUMNS": "300"})
        assert result.exit_code in (0, 1) and "\\ud800k" in result.output, result.output


def test_text_stays_the_text_that_it_is(tmp_path):
    texts = ["2020-01-01", "007", "1e5", "true", "null", "a\u2028b\x85c", "a\r\nb"]
    rows = [{"prompt": text, "chosen": f"{text}!", "rejected": text} for text in texts]
    found = read_preferences([lines(tmp_path / "a.jsonl", rows)])
    assert [(row.prompt[0][1], row.response) for row in found.rows[::2]] == [(text, f"{text}!") for text in texts]


def test_columns_and_configurations_are_chosen_by_the_run_and_by_the_commands(tmp_path):
    rows = [{"question": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in PAIRS]
    (tmp_path / "easy").mkdir()
    file = lines(tmp_path / "easy" / "a.jsonl", rows)
    assert sides(read_preferences([file], columns={"prompt": "question"})) == EXPECTED
    assert sides(read_preferences([tmp_path], config="easy", columns={"prompt": "question"})) == EXPECTED
    with pytest.raises(ValueError, match=r"the folder holds the folders easy; set data\.preference\.config to one"):
        read_preferences([tmp_path])
    options = ["--config", "easy", "--column", "prompt=question"]
    assert CliRunner().invoke(app, ["prefs", "check", str(tmp_path), *options]).exit_code == 0
    output = tmp_path / "rows.parquet"
    result = CliRunner().invoke(app, ["prefs", "convert", str(tmp_path), *options, "--output", str(output)])
    assert result.exit_code == 0 and sides(read_preferences([output])) == EXPECTED
    for words, reason in (
        (["--column", "prompt"], "--column prompt: write it as NAME=VALUE"),
        (["--column", "x=question"], "no format reads 'x'"),
        (["--template", "a=b"], "--template is of a model; name it with --model"),
        (["--cache-dir", "x"], "--cache-dir is of a model; name it with --model"),
    ):
        result = CliRunner().invoke(app, ["prefs", "check", file, *words])
        assert result.exit_code == 2 and reason in result.output, result.output


def test_several_columns_are_joined_and_one_is_left_out_by_the_commands(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"a": "1", "b": "2", "tools": ["t"], **ANSWERS}])
    options = ["--column", "prompt=a+b", "--column", "tools=null", "--output", str(tmp_path / "rows.parquet")]
    assert CliRunner().invoke(app, ["prefs", "convert", file, *options]).exit_code == 0
    assert read_preferences([tmp_path / "rows.parquet"]).rows[0].prompt == (("user", "1\n2"),)


def test_rows_are_written_as_parquet_alone(tmp_path):
    found = read_preferences([lines(tmp_path / "a.jsonl", PAIRS)])
    with pytest.raises(ValueError, match=r"rows\.jsonl: the ending must be \.parquet\."):
        write_preferences(found.rows, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_one_file_may_be_named_without_a_list_and_a_home_folder_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "a.jsonl", PAIRS)
    assert sides(read_preferences("~/a.jsonl")) == EXPECTED
