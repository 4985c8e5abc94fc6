"""What every format becomes, written out by hand, and every way in which a row can be unusable."""

from decimal import Decimal

import pytest

from fgrpo_plugin.preference.formats import BadRow, Notes, detect, rows_of
from fgrpo_plugin.preference.readers import FORMATS, READABLE

USER, GOOD, BAD = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
PROMPT = (("user", "2+2?"),)
HH = "\n\nHuman: 2+2?\n\nAssistant: Why?\n\nHuman: Because.\n\nAssistant:"
OPEN = "\n\nHuman: 2+2?\n\nAssistant: "
SHARE = {"from": "human", "value": "2+2?"}

EXAMPLES = {
    "text": ("paired", {"prompt": "2+2?", "chosen": "4", "rejected": "5"}),
    "messages": ("paired", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    "one message": ("paired", {"prompt": [USER], "chosen": GOOD, "rejected": BAD}),
    "lists": ("paired", {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5"]}),
    "prompt and whole conversations": ("paired", {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "prompt as text and whole conversations": (
        "paired",
        {"prompt": "2+2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ),
    "prompt and transcripts as text": (
        "paired",
        {"prompt": "2+2?", "chosen": f"{OPEN}4", "rejected": f"{OPEN}5"},
    ),
    "open transcript": ("paired", {"prompt": OPEN, "chosen": "4", "rejected": "5"}),
    "conversations": ("paired_transcripts", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "transcripts with windows' line ends": (
        "paired_transcripts",
        {side: f"\r\n\r\nHuman: 2+2?\r\n\r\nAssistant: {text}" for side, text in (("chosen", "4"), ("rejected", "5"))},
    ),
    "from and value": (
        "paired_conversations",
        {"conversations": [SHARE], "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}},
    ),
    "messages and two answers": ("paired_conversations", {"messages": [USER], "chosen": "4", "rejected": "5"}),
    "ms-swift": ("rejected_conversation", {"messages": [USER, GOOD], "rejected_response": "5"}),
    "ms-swift, messages": ("rejected_conversation", {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]}),
    "answers with their speaker": (
        "paired",
        {"prompt": "\n\nHuman: 2+2?", "chosen": "Assistant: 4", "rejected": "\n\nAssistant: 5"},
    ),
    "turns on single lines": (
        "paired_transcripts",
        {"chosen": "Human: 2+2?\nAssistant: 4", "rejected": "Human: 2+2?\nAssistant: 5"},
    ),
    "messages with text": (
        "paired",
        {"prompt": {"role": "human", "text": "2+2?"}, "chosen": {"role": "GPT", "text": "4"}, "rejected": "5"},
    ),
    "prompts that differ in the spaces at their ends": (
        "paired_transcripts",
        {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "2+2? "}, BAD]},
    ),
    "rewards": ("scored", {"prompt": "2+2?", "responses": ["4", "5"], "rewards": [Decimal("1.5"), -1]}),
    "ranks": ("scored", {"prompt": "2+2?", "responses": ["4", "5"], "ranks": [1, 2]}),
    "two responses, label": ("two_responses", {"instruction": "2+2?", "output_1": "5", "output_2": "4", "label": 2}),
    "two responses, name of the model": (
        "two_responses",
        {
            "prompt": "2+2?",
            "model_a": "llama_b",
            "model_b": "gpt_a",
            "response_a": "4",
            "response_b": "5",
            "winner": "llama_b",
        },
    ),
    "preferred output": (
        "preferred_output",
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
    ),
    "j and k": ("response_j_k", {"question": "2+2?", "response_j": "4", "response_k": "5"}),
    "two responses, id": (
        "two_responses",
        {"prompt": "2+2?", "response_0": "5", "response_1": "4", "better_response_id": 1},
    ),
    "two responses, signed": (
        "two_responses",
        {"context": [USER], "response1": "4", "response2": "5", "overall_preference": -2},
    ),
    "two responses, words": (
        "two_responses",
        {"instruction": "2+2?", "response_a": "5", "response_b": "4", "winner": "response_b"},
    ),
    "two responses, number": (
        "two_responses",
        {"instruction": "2+2?", "output_1": "5", "output_2": "4", "preference": 2.0},
    ),
    "two responses of a forum": (
        "two_responses",
        {"history": "2+2?", "human_ref_A": "5", "human_ref_B": "4", "labels": 0},
    ),
    "arena": (
        "two_conversations",
        {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
    ),
    "unpaired": ("unpaired", {"prompt": "2+2?", "completion": "4", "label": True}),
    "unpaired, other names": ("unpaired", {"prompt": [USER], "response": [GOOD], "desirable": 1}),
    "unpaired, number": ("unpaired", {"prompt": "2+2?", "completion": "4", "label": 1.0}),
    "unpaired, text": ("unpaired", {"prompt": "2+2?", "completion": "4", "label": "True"}),
    "unpaired conversation": ("unpaired_conversations", {"completion": [USER, GOOD], "label": True}),
    "unpaired messages": ("unpaired_conversations", {"messages": [USER, GOOD], "kto_tag": True}),
    "unpaired, prompt in the completion": ("unpaired", {"prompt": "2+2?", "completion": [USER, GOOD], "label": True}),
    "scored": ("scored", {"prompt": "2+2?", "responses": ["4", "5"], "scores": [1.0, 0.25]}),
    "scored as text": ("scored", {"prompt": "2+2?", "generations": ["4", "5"], "ratings": ["5", "3.5"]}),
    "rated": (
        "rated",
        {
            "instruction": "2+2?",
            "completions": [{"response": "4", "overall_score": 8.0}, {"response": "5", "overall_score": "2"}],
        },
    ),
    "ranked": ("rated", {"prompt": OPEN, "answers": [{"answer": "4", "rank": 1.0}, {"answer": "5", "rank": 2.0}]}),
}
UNPAIRED = {"scored", "rated"}


def read(example, notes=None):
    return rows_of(example, detect(list(example), "f", None, example), "f: row 3", notes)


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats(name):
    expected, example = EXAMPLES[name]
    assert detect(list(example), "f", None, example).format.name == expected
    rows = read(example)
    sides = [(PROMPT, "4", True), *([(PROMPT, "5", False)] if not expected.startswith("unpaired") else [])]
    assert [(row.prompt, row.response, row.desirable) for row in rows] == sides
    paired = not expected.startswith("unpaired") and expected not in UNPAIRED
    assert {row.pair for row in rows} == ({"f: row 3"} if paired else {None})
    assert rows[0].messages == [USER] and rows[0].source == "f: row 3"


def test_every_format_has_an_example_and_every_column_can_be_named():
    assert {format.name for format in FORMATS} == {name for name, _ in EXAMPLES.values()} | {"canonical"}
    assert {"prompt", "chosen", "system", "kto_tag", "pair"} <= set(READABLE)


@pytest.mark.parametrize(
    ("first", "second", "column", "value", "better"),
    [
        ("response_0", "response_1", "better_response_id", 0, "first"),
        ("response_0", "response_1", "safer_response_id", "1", "second"),
        ("response_1", "response_2", "preference", 1, "first"),
        ("response_1", "response_2", "preference_strength", 3, "second"),
        ("response_1", "response_2", "preference_strength", "-1", "first"),
        ("response_1", "response_2", "preference_strength", 0, None),
        ("response_1", "response_2", "preference_strength", 0.5, "second"),
        ("response1", "response2", "overall_preference", 1, "second"),
        ("response_0", "response_1", "labels", 1, "second"),
        ("response_a", "response_b", "winner", "Option B", "second"),
        ("response_a", "response_b", "winner", "tied", None),
        ("response_a", "response_b", "winner", "Neither.", None),
        ("response1", "response2", "preferred", "response2", "second"),
        ("response_A", "response_B", "preferred", "A", "first"),
        ("response_a", "response_b", "winner", "model_a", "first"),
        ("response_a", "response_b", "winner", "tie (bothbad)", None),
        ("response_a", "response_b", "winner", "", None),
        ("human_ref_A", "human_ref_B", "labels", 1, "first"),
        ("human_ref_A", "human_ref_B", "labels", 0, "second"),
        ("answer_0", "answer_1", "preferred", 1, "second"),
    ],
)
def test_which_of_two_responses_is_the_better_one(first, second, column, value, better):
    notes = Notes()
    rows = read({"prompt": "p", first: "first", second: "second", column: value}, notes)
    assert notes.ties == (better is None) and len(rows) == (0 if better is None else 2)
    if better is not None:
        assert [(row.response, row.desirable) for row in rows if row.desirable] == [(better, True)]


@pytest.mark.parametrize("value, reason", [(2, "names neither"), ("c", "names neither"), (None, "is missing")])
def test_a_choice_that_names_neither_is_a_bad_row(value, reason):
    with pytest.raises(BadRow, match=reason):
        read({"prompt": "p", "response_0": "a", "response_1": "b", "preference": value})
    with pytest.raises(BadRow, match="names neither"):
        read({"prompt": "p", "response_a": "a", "response_b": "b", "preference": "grab"})
    for winner in ("claude_b", "model_c"):
        with pytest.raises(BadRow, match="names neither"):
            read({"prompt": "p", "response_a": "a", "response_b": "b", "winner": winner})
    with pytest.raises(BadRow, match="the model of both responses"):
        models = {"model_a": "m", "model_b": "m"}
        read({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "m", **models})
    with pytest.raises(BadRow, match="'preference_strength' is not a number"):
        read({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": "A"})
    with pytest.raises(
        BadRow, match=r"\{preference_strength: overall_preference\} or \{preferred: overall_preference\}"
    ):
        read({"prompt": "p", "response_1": "a", "response_2": "b", "overall_preference": 1})
    with pytest.raises(BadRow, match="names neither"):
        read({"prompt": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 2})


def test_transcripts_as_text():
    chosen, rejected = read({"chosen": f"{HH} 4\n", "rejected": f"{HH} 5"})
    assert chosen.prompt == (("user", "2+2?"), ("assistant", "Why?"), ("user", "Because."))
    assert (chosen.response, rejected.response) == ("4", "5")


def test_several_answers_on_a_side_are_rows_of_it():
    rows = read({"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"]})
    assert [(row.response, row.desirable) for row in rows] == [("a", True), ("b", False), ("c", False)]


def test_scores_at_the_mean_are_on_neither_side():
    notes = Notes()
    rows = read({"prompt": "p", "responses": list("abc"), "scores": [0.3, 0.2, 0.1]}, notes)
    assert [(row.response, row.desirable) for row in rows] == [("a", True), ("c", False)] and notes.at_mean == 1


def test_a_better_rank_is_a_smaller_number():
    answers = [{"answer": text, "rank": rank} for text, rank in (("worst", 3), ("best", 1), ("middle", 2))]
    assert [(row.response, row.desirable) for row in read({"prompt": "p", "answers": answers})] == [
        ("worst", False),
        ("best", True),
    ]


def test_a_higher_rating_is_better_and_a_small_difference_is_one():
    answers = [{"answer": "good", "rating": 100.5}, {"answer": "bad", "rating": "100"}]
    rows = read({"prompt": "p", "answers": answers})
    assert [(row.response, row.desirable) for row in rows] == [("good", True), ("bad", False)]
    assert len(read({"prompt": "p", "responses": ["a", "b"], "scores": [1e6, 1e6 + 1]})) == 2


def test_scores_of_any_size_have_a_mean():
    rows = read({"prompt": "p", "responses": list("abc"), "scores": [1e308, 1.7e308, 1.7e308]})
    assert [row.desirable for row in rows] == [False, True, True]


def test_of_single_answers_the_same_text_may_stand_on_both_sides():
    """prefs check counts them; in a pair they are refused."""
    rows = read({"prompt": "p", "responses": ["a", "a"], "scores": [1, 2]})
    assert [row.desirable for row in rows] == [False, True]


def test_what_an_answer_holds_beside_text_and_score_is_noted_or_refused():
    def example(**more):
        return {"prompt": "p", "answers": [{"text": "a", "score": 1, **more}, {"text": "b", "score": 2}]}

    notes = Notes()
    read(example(model="m", annotations={"x": "5"}, empty=None), notes)
    assert list(notes.unread) == ["answers[].model", "answers[].annotations"]
    for key in ("custom_system_prompt", "system", "prompt", "messages", "tools", "reasoning", "context"):
        with pytest.raises(BadRow, match=rf"'answers\[\]' has '{key}', which conditions responses.*{key}=null"):
            read(example(**{key: "Be rude."}))
    assert read(example(custom_system_prompt="Be rude."), Notes(["custom_system_prompt"]))
    with pytest.raises(BadRow, match="has both overall_score and score"):
        read(example(overall_score=3))
    with pytest.raises(BadRow, match="lacks one of response, answer"):
        read({"prompt": "p", "answers": [{"score": 1}, {"text": "b", "score": 2}]})
    with pytest.raises(BadRow, match="lacks one of overall_score, score, pm_score, rating, rank"):
        read({"prompt": "p", "answers": [{"text": "a", "fine-grained_score": 1}, {"text": "b", "score": 2}]})


def test_tools_of_a_preferred_output_are_refused_unless_left_out_on_purpose():
    _, example = EXAMPLES["preferred output"]
    example = {**example, "input": {**example["input"], "tools": [{"name": "weather"}]}}
    with pytest.raises(BadRow, match="'input' has 'tools', which conditions responses"):
        read(example)
    notes = Notes(["tools"])
    assert len(read(example, notes)) == 2 and list(notes.unread) == ["input.tools"]


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' must be text or a list of messages"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "a response is empty"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "'chosen' must be text or a list of messages"),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "the prompt ends with a response"),
        ({"prompt": f"{OPEN}Sure, ", "chosen": "a", "rejected": "b"}, "'prompt' ends with the beginning of a response"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "'chosen' does not end with a response"),
        (
            {"prompt": [{"role": "bear", "content": "x"}], "chosen": "a", "rejected": "b"},
            "has a role other than system, user",
        ),
        ({"prompt": [{"role": "user", "content": ["x"]}], "chosen": "a", "rejected": "b"}, "content is not text"),
        ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "does not hold the prompt"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "'chosen' is text without the turns"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "x"}, BAD]}, "differ before their last responses"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "'chosen' holds no prompt"),
        ({"prompt": "p", "completion": "a", "label": "yes"}, "'label' is a label other than true, false, 1 and 0"),
        ({"prompt": "p", "completion": "a", "label": 2}, "'label' is a label other"),
        ({"prompt": "p", "completion": "a", "label": None}, "'label' is a label other"),
        ({"prompt": "p", "completion": [USER], "label": 1}, "'completion' does not end with a response"),
        ({"prompt": "p", "responses": ["a"], "scores": [1.0, 2.0]}, "lists of the same length"),
        ({"prompt": "p", "responses": "ab", "scores": [1.0, 2.0]}, "lists of the same length"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, float("nan")]}, "'scores' is not a finite number"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, "N/A"]}, "'scores' is not a finite number"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, True]}, "'scores' is not a finite number"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, None]}, "a score in 'scores' is missing"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 1.0]}, "all scores are equal"),
        ({"prompt": "p", "responses": [], "scores": []}, "all scores are equal"),
        ({"prompt": "p", "answers": ["a", "b"]}, "'answers' must be a list of objects"),
        ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "'input' must be an object"),
        (
            {"prompt": [USER], "response": [GOOD], "desirable": True, "pair": "p", "source": "s"},
            "'response' is not text",
        ),
    ],
)
def test_bad_rows(example, reason):
    with pytest.raises(BadRow, match=reason):
        read(example)


def test_the_reason_is_the_same_for_all_rows_and_the_sample_tells_the_value():
    reasons = []
    for value in ("yes", "no"):
        with pytest.raises(BadRow) as refused:
            read({"prompt": "p", "completion": "a", "label": value})
        reasons.append((str(refused.value), refused.value.sample))
    assert reasons[0][0] == reasons[1][0] and [sample for _, sample in reasons] == ["'yes'", "'no'"]
