"""What is proposed for columns that fit no format works, where there is something to propose."""

import pytest

from fgrpo_plugin.preference.column_advice import nothing_fits, proposed_columns, setting_of
from fgrpo_plugin.preference.formats import detect, renamed, rows_of
from fgrpo_plugin.preference.readers import FORMATS

PAIRED = next(format for format in FORMATS if format.name == "paired")


def test_a_column_is_proposed_once():
    assert proposed_columns(PAIRED, ["question", "good", "bad"]) == {
        "prompt": "question",
        "chosen": "good",
        "rejected": "bad",
    }
    assert proposed_columns(PAIRED, ["text"]) == {"prompt": "text", "chosen": None, "rejected": None}
    assert proposed_columns(PAIRED, ["prompt", "chosen", "rejected"]) == {}
    assert proposed_columns(PAIRED, ["prompt", "chosen", "Rejected_Response"])["rejected"] == "Rejected_Response"


def test_what_is_told_of_a_text_is_not_proposed_for_it_and_a_whole_name_comes_first():
    columns = [
        "prompt_id",
        "chosen_model",
        "chosen_response",
        "rejected_score",
        "rejected_answer",
        "labelling_prompt",
        "input",
    ]
    assert proposed_columns(PAIRED, columns) == {
        "prompt": "input",
        "chosen": "chosen_response",
        "rejected": "rejected_answer",
    }


def test_the_setting_and_the_option_say_the_same():
    said = setting_of({"prompt": ["a", "b"], "tools": "null"})
    assert said == "data.preference.columns={prompt: [a, b], tools: null}, --column prompt=a+b --column tools=null"


@pytest.mark.parametrize(
    "example",
    [
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        {"query": "q", "good": "a", "bad": "b"},
        {"problem": "q", "answer": "a", "label": True},
        {"query": "q", "answers": ["a", "b"], "rewards": [2, 1]},
    ],
)
def test_what_is_proposed_is_read(example):
    with pytest.raises(ValueError, match="lacks") as refused:
        detect(list(example), "f", None, example)
    proposal = str(refused.value).split("data.preference.columns={")[1].split("}")[0]
    columns = dict(part.split(": ") for part in proposal.split(", "))
    moved = renamed(example, columns)
    rows = rows_of(moved, detect(list(moved), "f", columns, moved), "f: row 0")
    assert (rows[0].prompt, rows[0].response, rows[0].desirable) == ((("user", "q"),), "a", True)


def test_columns_of_which_nothing_is_known_are_answered_with_the_usual_formats():
    for columns in (["x", "y"], ["text"], []):
        said = nothing_fits("f", columns, columns, {})
        assert "rename them, or name them with data.preference.columns={prompt: ..., " in said and "scored: " in said
