"""Published columns, who says what is harmful, and what is refused: mild prompts of our own in the same shapes."""

import json

import pytest

from fgrpo_plugin.eval.prompt_sets import SAFE_TYPES, read_prompts

BREAD, CHEAT = "How do I bake bread?", "How do I cheat in a board game?"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(one):
    return [(prompt.chat[-1]["content"], prompt.harmful) for prompt in one.asked.values()]


@pytest.mark.parametrize(
    "row",
    [
        {"goal": CHEAT, "target": "Sure, here is how to cheat"},
        {"qid": 0, "question": CHEAT, "source": "ours", "1-category": "O1: Games", "2-category": "", "3-category": ""},
        {"qid": 0, "aid": 1, "augq": CHEAT, "baseq": "another", "method": "gptfuzz", "1-category": "O1: Games"},
        {"qid": 0, "did": 1, "daugq": CHEAT, "baseq": "another", "dmethod": "reminder_prompt"},
        {"prompt": CHEAT},
        {"prompt": CHEAT, "label": "games", "type": "of ours"},  # columns of another meaning
        {"prompt": [{"role": "user", "content": CHEAT}], "data_source": "x", "reward_model": {"style": "model"}},
    ],
)
def test_published_columns_whose_side_the_user_says(tmp_path, row):
    file = write(tmp_path / "a.jsonl", [row])
    assert [asked(one) for one in read_prompts(harmful=[file])] == [[(CHEAT, True)]]
    assert [asked(one) for one in read_prompts(safe=[file])] == [[(CHEAT, False)]]
    with pytest.raises(
        ValueError, match=r"^--data .*a\.jsonl: row 0 does not say whether it is harmful \(a label unsafe"
    ):
        read_prompts(data=[file])


def test_xstests_files_say_which_they_are(tmp_path):
    new, old = tmp_path / "xstest_prompts.csv", tmp_path / "xstest_v2_prompts.csv"
    new.write_bytes(
        b"\xef\xbb\xbfid,prompt,type,label,focus,note\r\n"
        + f"1,{BREAD},homonyms,safe,bake,\r\n26,{CHEAT},contrast_homonyms,unsafe,cheat,games\r\n".encode()
    )
    old.write_text(
        f"id_v1,id_v2,type,prompt,focus,note\n,v2-1,historical_events,{BREAD},,\n,v2-2,contrast_discr,{CHEAT},,\n"
    )
    found = read_prompts(data=[new, old])
    assert [one.name for one in found] == ["xstest_prompts", "xstest_v2_prompts"]
    assert [asked(one) for one in found] == [[(BREAD, False), (CHEAT, True)]] * 2
    assert len(SAFE_TYPES) == 10


@pytest.mark.parametrize(
    "more, harmful",
    [
        ({"label": "Unsafe "}, True),
        ({"label": "benign"}, False),
        ({"label": "harmful", "type": "homonyms"}, True),  # a label before a type
        ({"extra_info": {"label": "safe"}}, False),
        ({"extra_info": {"label": "unsafe"}, "label": "games"}, True),
        ({"type": "contrast_games"}, True),
        ({"type": "definitions"}, False),
    ],
)
def test_what_a_row_says(tmp_path, more, harmful):
    file = write(tmp_path / "a.jsonl", [{"prompt": CHEAT} | more])
    (found,) = read_prompts(data=[file])
    assert asked(found) == [(CHEAT, harmful)]
    setting, side = ("--safe", "harmful") if harmful else ("--harmful", "safe")
    with pytest.raises(ValueError, match=f"^{setting} .*: row 0 says that it is {side}; name the file with --data"):
        read_prompts(**{setting[2:]: [file]})


def test_verls_parquet_with_messages(tmp_path):
    import datasets

    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": CHEAT}]
    rows = [{"prompt": chat, "data_source": "x", "extra_info": {"label": "unsafe", "index": 0}}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "test.parquet"))
    (found,) = read_prompts(data=[tmp_path / "test.parquet"])
    (prompt,) = found.asked.values()
    assert list(prompt.chat) == chat and prompt.harmful


def test_a_prompt_that_stands_there_twice_is_asked_once_and_a_limit_draws_of_the_rest(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": BREAD}, {"prompt": BREAD}, {"prompt": "How do I boil an egg?"}])
    (found,) = read_prompts(safe=[file])
    assert len(found.asked) == 2 and found.repeated == 1
    (found,) = read_prompts(safe=[file], limit=1)
    assert len(found.asked) == 1


@pytest.mark.parametrize(
    "rows, why",
    [
        (
            [{"text": "x", "target": 1}],
            r"no column of prompts \(found: text, target\); rename one to one of goal, augq",
        ),
        ([{"mcq": "x", "baseq": "x", "gt": "A"}], r"no column of prompts \(found: mcq, baseq, gt\)"),
        ([{"goal": "x", "prompt": "y"}], "the columns goal and prompt could both be meant; leave one of them out"),
        ([{"goal": CHEAT}, {"goal": " "}], "row 1 asks nothing in goal"),
        ([{"goal": None}], "row 0 asks nothing in goal"),
        ([{"goal": float("nan")}], "row 0 asks nothing in goal"),
        ([{"prompt": []}], "row 0 asks nothing in prompt"),
        ([{"prompt": [{"role": "user", "content": ""}]}], "row 0 asks nothing in prompt"),
        ([{"prompt": [{"content": CHEAT}]}], "row 0 has a message without a role, or whose content is no text"),
        ([{"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}], "row 0 has a message without a"),
        (
            [{"prompt": [{"role": "user", "content": CHEAT}, {"role": "assistant", "content": "Sure"}]}],
            "row 0 ends with a message of the assistant; a prompt ends with the user's",
        ),
        ([], "it holds no rows"),
    ],
)
def test_rows_that_cannot_be_asked_are_refused_by_number(tmp_path, rows, why):
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=f"^--harmful {file}: {why}") as error:
        read_prompts(harmful=[file])
    assert "\n" not in str(error.value)


def test_what_contradicts_itself_is_refused(tmp_path):
    both = write(tmp_path / "a.jsonl", [{"prompt": BREAD, "label": label} for label in ("safe", "unsafe")])
    other = write(tmp_path / "other" / "a.jsonl", [{"prompt": BREAD}])
    with pytest.raises(
        ValueError, match=r"--data .*a\.jsonl: a prompt stands in it as harmful and as safe; remove one"
    ):
        read_prompts(data=[both])
    with pytest.raises(ValueError, match="two sets are called a"):
        read_prompts(safe=[other], harmful=[other])
    with pytest.raises(ValueError, match=r"^no prompts; name a file with --harmful or --safe, or with --data"):
        read_prompts()
    with pytest.raises(ValueError, match=r"--safe .*none\.csv: there is no such file or folder"):
        read_prompts(safe=[tmp_path / "none.csv"])
