"""Rows in tokens are made once: whatever they depend on makes them anew, and nothing else does."""

import copy
import json
import os
from pathlib import Path

import pytest

from fgrpo_plugin.preference import loading
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.files import read_preferences
from fgrpo_plugin.preference.loading import RowSettings, load_rows
from fgrpo_plugin.preference.tokens import encode_row
from fgrpo_plugin.quickstart.model import build_tokenizer
from tests.preference.conftest import lines

PAIRS = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(5)]
SETTINGS = RowSettings(64, 8, {})


@pytest.fixture
def file(tmp_path):
    return lines(tmp_path / "a.jsonl", PAIRS)


@pytest.fixture
def made(monkeypatch):
    """How often rows were made."""
    calls = []
    inner = loading.encode
    monkeypatch.setattr(loading, "encode", lambda *args, **more: calls.append(1) or inner(*args, **more))
    return calls


def load(file, folder, tokenizer=None, settings=SETTINGS, held_out=False, say=print, **wanted):
    return load_rows(
        PreferenceConfig(files=[file], **wanted), held_out, tokenizer or build_tokenizer(), settings, folder, say
    )


def test_a_second_start_has_the_same_rows_and_lines_and_makes_none(file, tmp_path, made):
    first, second = (load(file, tmp_path / "cache") for _ in range(2))
    assert len(made) == 1 and first.lines == second.lines and first.digests == second.digests
    text = read_preferences([file]).rows
    for loaded in (first, second):
        expected = [encode_row(row, build_tokenizer()) for row in text]
        assert [(r.digest, r.desirable, r.pair, r.source) for r in loaded.rows] == [
            (r.digest, r.desirable, r.pair, r.source) for r in expected
        ]
    assert first.lines[0] == f"10 preference rows, 5 of them desirable, of 5 examples in {file} (paired)"


def test_whatever_rows_depend_on_makes_them_anew(file, tmp_path, made):
    folder = tmp_path / "cache"
    load(file, folder)
    other = copy.deepcopy(build_tokenizer())
    other.chat_template = other.chat_template.replace("<|im_start|>", "<|im_start|> ")
    ended = copy.deepcopy(build_tokenizer())
    ended.eos_token = "<|reserved_4|>"
    for number, change in enumerate(
        (
            {"tokenizer": other},
            {"tokenizer": ended},
            {"settings": RowSettings(63, 8, {})},
            {"settings": RowSettings(64, 7, {})},
            {"settings": RowSettings(64, 8, {"x": 1})},
            {"settings": RowSettings(64, 8, {"x": 2})},
            {"settings": RowSettings(64, 8, {}, (3,))},
            {"on_bad_row": "skip"},
            {"on_too_long": "drop"},
            {"on_templated": "keep"},
            {"columns": {"chosen": "rejected", "rejected": "chosen"}},
            {"split": "other"},
        ),
        start=2,
    ):
        load(file, folder, **change)
        assert len(made) == number, change
    load(file, folder, seed=3, batch_size=2, keep_pairs=True)  # what draws rows does not change them
    assert len(made) == number


def test_a_file_that_changes_is_read_again_though_size_and_time_stay(file, tmp_path, made):
    import os
    from pathlib import Path

    load(file, tmp_path / "cache")
    path = Path(file)
    status = path.stat()
    path.write_text(path.read_text().replace("4+1=", "4+2="))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(file, tmp_path / "cache").rows[-1].prompt_ids != encode_row(
        read_preferences([file]).rows[0], build_tokenizer()
    )
    assert len(made) == 2


@pytest.mark.parametrize("how", ["grows", "other content", "is cut", "is gone"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_is_kept_of_it(file, tmp_path, monkeypatch, how):
    whole, inner = Path(file).read_text(), loading.encode

    def encode(rows, *args, **more):
        found = inner(rows, *args, **more)
        if how == "is gone":
            os.unlink(file)
        else:
            changed = {"grows": whole + whole, "other content": whole.replace("1", "2"), "is cut": whole[:-40]}[how]
            Path(file).write_text(changed)
        return found

    monkeypatch.setattr(loading, "encode", encode)
    said = "a file changed while it was read; let what writes it finish" if how != "is gone" else "there is no"
    with pytest.raises(ValueError, match=said):
        load(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("lines.json"))
    monkeypatch.setattr(loading, "encode", inner)
    Path(file).write_text(whole)
    assert len(load(file, tmp_path / "cache").rows) == 10


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_rows_in_use_do_not_change_with_their_file(file, tmp_path, how):
    rows = load(file, tmp_path / "cache").rows
    before = [(tuple(row.ids), row.desirable) for row in rows]
    Path(file).write_text("") if how == "cut" else os.unlink(file)
    assert [(tuple(row.ids), row.desirable) for row in rows] == before and len(before) == 10


def test_the_same_content_under_another_name_is_named_so(file, tmp_path, made):
    import shutil

    load(file, tmp_path / "cache")
    other = str(shutil.copy(file, tmp_path / "b.jsonl"))
    assert load(other, tmp_path / "cache").rows[0].source == f"{other}: row 0" and len(made) == 2


def test_damaged_rows_are_made_anew_and_a_folder_that_cannot_be_written_is_no_error(file, tmp_path, made):
    folder = tmp_path / "cache"
    load(file, folder)
    (place,) = (folder / "tokens").iterdir()
    (place / "digests.npy").write_bytes(b"x")
    assert len(load(file, folder).rows) == 10 and len(made) == 2
    assert len(load(file, folder).rows) == 10 and len(made) == 2
    (place / "lines.json").unlink()
    assert len(load(file, folder).rows) == 10 and len(made) == 3
    (tmp_path / "a file").write_text("")
    for _ in range(2):
        assert len(load(file, tmp_path / "a file").rows) == 10
    assert len(made) == 5


def test_a_single_bit_that_has_changed_in_kept_rows_is_named_and_they_are_made_anew(file, tmp_path, made, capsys):
    folder = tmp_path / "cache"
    expected = [row.ids.tolist() for row in load(file, folder).rows]
    (place,) = (folder / "tokens").iterdir()
    content = bytearray((place / "tokens.npy").read_bytes())
    content[-4] ^= 1
    (place / "tokens.npy").write_bytes(content)
    assert [row.ids.tolist() for row in load(file, folder).rows] == expected and len(made) == 2
    assert f"{place}: tokens.npy has another content than was written; it is removed" in capsys.readouterr().out


def test_rows_kept_by_an_earlier_version_without_a_list_of_files_are_made_anew_once(file, tmp_path, made):
    from fgrpo_plugin.manifest import MANIFEST

    load(file, tmp_path / "cache")
    (place,) = (tmp_path / "cache" / "tokens").iterdir()
    (place / MANIFEST).unlink()
    for _ in range(2):
        assert len(load(file, tmp_path / "cache").rows) == 10 and len(made) == 2


def test_a_tokenizer_that_cannot_be_told_from_another_is_asked_each_time(file, tmp_path, made):
    class Slow:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._inner, name)

        def __call__(self, *args, **more):
            return self._inner(*args, **more)

    for _ in range(2):
        assert len(load(file, tmp_path / "cache", Slow(build_tokenizer())).rows) == 10
    assert len(made) == 2 and not (tmp_path / "cache").exists()


def test_what_is_left_out_is_said_at_each_start(tmp_path, made):
    rows = [*PAIRS, {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, {**PAIRS[1], "chosen": "9" * 20, "note": "x"}]
    rows += [{**PAIRS[2], "chosen": "x[INST]"}]
    file = lines(tmp_path / "a.jsonl", rows)
    settings = {"on_bad_row": "skip", "on_too_long": "drop", "on_templated": "skip"}
    for _ in range(2):
        said = load(file, tmp_path / "cache", **settings).lines
        assert said[0].startswith("10 preference rows, 5 of them desirable, of 8 examples")
        assert f"  left out: 1 x chosen and rejected are the same (first: {file}: row 5)" in said
        assert f"  not read: {file}: note" in said
        assert any("left out: 1 rows: it holds '[INST]'" in line and "row 7" in line for line in said)
        assert "  too long: 1 dropped" in said and "  too long: 1 partner dropped" in said
    assert len(made) == 1


def test_template_problems_are_said_with_the_runs_arguments(file, tmp_path):
    odd = copy.deepcopy(build_tokenizer())
    odd.chat_template = odd.chat_template + "{% if loud %}!{% endif %}"
    assert not [line for line in load(file, tmp_path / "cache", odd).lines if line.startswith("  template:")]
    loud = load(file, tmp_path / "cache", odd, RowSettings(64, 8, {"loud": True})).lines
    assert "  template: the template renders the prompt otherwise where a response follows" in loud
    stray = copy.deepcopy(build_tokenizer())
    stray.eos_token = "<|reserved_4|>"
    assert any(
        "rollouts stop at '<|reserved_4|>' alone" in line for line in load(file, tmp_path / "cache", stray).lines
    )


def test_rows_end_where_rollouts_stop(file, tmp_path):
    stray = copy.deepcopy(build_tokenizer())
    end, stray.eos_token = stray.eos_token_id, "<|reserved_4|>"
    loaded = load(file, tmp_path / "cache", stray, RowSettings(64, 8, {}, (end,)))
    assert {row.response_ids[-1] for row in loaded.rows} == {end} and len(loaded.lines) == 1


def test_one_side_alone_is_refused_with_what_was_left_out(tmp_path):
    rows = [{"prompt": "p", "completion": "9" * (20 if i % 2 else 1), "label": i % 2} for i in range(4)]
    file = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        ValueError,
        match=r"(?s)data\.preference\.files .*desirable or undesirable rows alone are left.*too long: 2 dropped",
    ):
        load(file, tmp_path / "cache", on_too_long="drop")
    alone = lines(tmp_path / "alone.jsonl", [{"prompt": "p", "completion": "9", "label": True}])
    with pytest.raises(ValueError, match="desirable or undesirable rows alone are left"):
        load(alone, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"data\.preference\.val_files"):
        wanted = PreferenceConfig(files=["x"], val_files=[file], on_too_long="drop")
        load_rows(wanted, True, build_tokenizer(), SETTINGS, tmp_path / "cache")


def test_progress_tells_rows_share_and_time_left(tmp_path, monkeypatch):
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(3000)]
    now = iter(range(0, 10_000, 11))
    monkeypatch.setattr(loading.time, "monotonic", lambda: next(now))
    said = []
    load(lines(tmp_path / "a.jsonl", rows), tmp_path / "cache", say=said.append)
    assert len(said) == 6 and said[0].startswith("fgrpo-plugin: 1024 preference rows in tokens, ")
    assert said[-1].startswith("fgrpo-plugin: 6000 preference rows in tokens, 100% of the files; 0 s left")
    assert json.loads(next((tmp_path / "cache" / "tokens").glob("*/lines.json")).read_text())[0].startswith("6000 ")
