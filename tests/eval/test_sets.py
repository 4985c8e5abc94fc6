"""Sets of what is asked: which files they are, their ids, and what is refused."""

import gzip
import json
from dataclasses import dataclass

import pytest

from fgrpo_plugin.eval.sets import AskedSet, files_of_sets, read_set, text_or_chat, unlike_names


@dataclass(frozen=True)
class Words:
    chat: tuple[dict[str, str], ...]
    more: str = ""


def words(row, number):
    chat = text_or_chat(row.get("words"))
    if not chat:
        raise ValueError(f"row {number} says nothing")
    return Words(tuple(chat), row.get("more", ""))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(found):
    return [one.chat[0]["content"] for one in found.asked.values()]


def test_files_of_every_kind_and_folders_of_them(tmp_path):
    write(tmp_path / "b.v1.jsonl", [{"words": "1"}])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"words": "2"}) + "\n")
    (tmp_path / "c.csv").write_text('words\n"3, 4"\n')
    (tmp_path / "README.md").write_text("of the sets")
    files = files_of_sets([tmp_path])
    assert [file.name for file in files] == ["a.jsonl.gz", "b.v1.jsonl", "c.csv"]
    found = [read_set(file, words) for file in files]
    assert [one.name for one in found] == ["a", "b.v1", "c"] and [said(one) for one in found] == [
        ["2"],
        ["1"],
        ["3, 4"],
    ]


def test_an_id_tells_of_the_row_and_of_all_that_is_asked(tmp_path):
    rows = [{"words": "1"}, {"words": "1"}, {"words": "1", "more": "x"}]
    found = list(read_set(write(tmp_path / "a.jsonl", rows), words).asked)
    parts = [key.split("-") for key in found]
    assert [number for number, _ in parts] == ["0", "1", "2"]
    assert parts[0][1] == parts[1][1] != parts[2][1] and len(parts[0][1]) == 16


def test_a_limit_takes_the_same_whatever_the_order(tmp_path):
    rows = [{"words": str(number)} for number in range(40)]
    one = read_set(write(tmp_path / "a.jsonl", rows), words, limit=10)
    other = read_set(write(tmp_path / "b.jsonl", rows[::-1]), words, limit=10)
    assert len(one.asked) == 10 and sorted(said(one)) == sorted(said(other))
    assert said(one) == sorted(said(one), key=int) != [str(number) for number in range(10)]


def test_what_is_refused_names_the_setting_and_the_file(tmp_path):
    (tmp_path / "empty").mkdir()
    none = write(tmp_path / "none.jsonl", [])
    bad = write(tmp_path / "bad.jsonl", [{"words": "1"}, {"words": " "}])
    other = tmp_path / "rows.tsv"
    other.write_text("words\n1\n")
    table = tmp_path / "bad.csv"
    table.write_text("words\n1,2\n")
    for read, why in (
        (lambda: files_of_sets([tmp_path / "missing"], "--safe"), "--safe .*missing: there is no such file or folder"),
        (lambda: files_of_sets([tmp_path / "empty"], "--safe"), r"--safe .*empty: the folder holds no file of .*\.csv"),
        (lambda: read_set(other, words), r"--data .*rows\.tsv: the ending '\.tsv' is none of .*, \.csv\."),
        (lambda: read_set(none, words, setting="--safe"), r"--safe .*none\.jsonl: it holds no rows\."),
        (lambda: read_set(bad, words, setting="--safe"), r"--safe .*bad\.jsonl: row 1 says nothing\."),
        (lambda: read_set(table, words, setting="--safe"), r"--safe .*bad\.csv: row 0 has 2 values for 1 columns"),
        (lambda: unlike_names([AskedSet("a", {}), AskedSet("b", {}), AskedSet("a", {})]), "two sets are called a;"),
    ):
        with pytest.raises(ValueError, match=f"^{why}"):
            read()


def test_text_and_messages_are_chats_and_nothing_said_is_none():
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "1?"}]
    assert text_or_chat("1?") == [{"role": "user", "content": "1?"}] and text_or_chat(chat) == chat
    for empty in ("", " \n", [], [{"role": "user", "content": " "}], [{"role": "user"}], None, 1, float("nan"), ["x"]):
        assert text_or_chat(empty) == []


def test_what_several_rows_ask_is_asked_once_where_that_is_wished(tmp_path):
    rows = [{"words": word} for word in ("1", "2", "1", "3", "1")]
    file = write(tmp_path / "a.jsonl", rows)
    found = read_set(file, words, once=True)
    assert said(found) == ["1", "2", "3"] and found.repeated == 2
    assert [key.split("-")[0] for key in found.asked] == ["0", "1", "3"]  # the first of each
    assert len(read_set(file, words).asked) == 5 and read_set(file, words).repeated == 0
    assert len(read_set(file, words, once=True, limit=2).asked) == 2
