"""A file of responses: its settings, what broke off, and what is appended."""

import json

import pytest

from fgrpo_plugin.eval.kept import KeptResponses

SETTINGS = {"model": "a", "samples": 2}
CHATS = {key: [{"role": "user", "content": f"{key}?"}] for key in "01"}
GIVEN = [{"text": "7", "tokens": 1, "ended": True}]


def test_what_is_added_is_read_and_appended_to(tmp_path):
    file = tmp_path / "new" / "set.jsonl"
    with KeptResponses(file, SETTINGS).more(CHATS) as add:
        add("0", GIVEN)
    again = KeptResponses(file, SETTINGS)
    assert again.read(CHATS) == {"0": GIVEN}
    with again.more(CHATS) as add:
        add("1", GIVEN)
        assert again.read(CHATS) == {"0": GIVEN, "1": GIVEN}  # while it is written
    assert next(json.loads(line) for line in file.read_text().splitlines()) == {"settings": SETTINGS}


def test_a_line_that_broke_off_is_dropped(tmp_path):
    file = tmp_path / "set.jsonl"
    with KeptResponses(file, SETTINGS).more(CHATS) as add:
        add("0", GIVEN)
        add("1", [{"text": "é", "tokens": 1, "ended": True}])
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    kept = KeptResponses(file, SETTINGS)
    assert list(kept.read(CHATS)) == ["0"]
    with kept.more(CHATS) as add:
        add("1", [{"text": "é", "tokens": 1, "ended": True}])
    assert file.read_bytes() == whole


def test_another_prompt_under_the_same_id_is_refused_and_one_that_is_not_asked_is_left_alone(tmp_path):
    kept = KeptResponses(tmp_path / "set.jsonl", SETTINGS)
    with kept.more(CHATS) as add:
        add("0", GIVEN)
        add("1", GIVEN)
    assert kept.read({"1": CHATS["1"]}) == {"1": GIVEN}
    for other in ({"role": "user", "content": "0!"}, {"role": "system", "content": "0?"}):
        with pytest.raises(ValueError, match=r"has responses to another prompt than is asked now \(0\); remove it"):
            kept.read({"0": [other]})
    assert kept.read({"1": CHATS["1"], "2": CHATS["0"]}) == {"1": GIVEN}


def test_a_response_may_hold_any_sign(tmp_path):
    kept = KeptResponses(tmp_path / "set.jsonl", SETTINGS)
    odd = [{"text": "a\u2028b\x0bc\x85d\r\ne", "tokens": 1, "ended": True}]
    with kept.more(CHATS) as add:
        add("0", odd)
    assert kept.read(CHATS) == {"0": odd}


@pytest.mark.parametrize("line", ["words", "[1]", '{"id": "0"}', '{"id": "0", "responses": []}'])
def test_a_spoilt_line_is_one_sentence(tmp_path, line):
    kept = KeptResponses(tmp_path / "set.jsonl", SETTINGS)
    with kept.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"set\.jsonl is spoilt; remove it, or name another folder"):
        kept.read(CHATS)


def test_other_settings_are_refused_by_name(tmp_path):
    file = tmp_path / "set.jsonl"
    KeptResponses(file, SETTINGS)
    with pytest.raises(ValueError, match=r"made with other settings \(samples 2, now 4; seed None, now 1\); remove it"):
        KeptResponses(file, {**SETTINGS, "samples": 4, "seed": 1})
    assert KeptResponses(file, SETTINGS).read(CHATS) == {}


@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", "words\n", '{"settings": 1'])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    file = tmp_path / "set.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match="does not begin with settings, so it holds no responses; name another"):
        KeptResponses(file, SETTINGS)
    assert file.read_text() == text
