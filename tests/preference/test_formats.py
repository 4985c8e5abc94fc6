"""What every format becomes, written out by hand, and every way in which a row can be unusable."""

import pytest

from fgrpo_plugin.preference.formats import BadRow, detect, rows_of

USER, GOOD, BAD = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
PROMPT = (("user", "2+2?"),)
HH = "\n\nHuman: 2+2?\n\nAssistant: Why?\n\nHuman: Because.\n\nAssistant:"

EXAMPLES = {
    "text": ("paired", {"prompt": "2+2?", "chosen": "4", "rejected": "5"}),
    "messages": ("paired", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    "prompt and whole conversations": (
        "paired",
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ),
    "conversations": ("paired_transcripts", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "unpaired": ("unpaired", {"prompt": "2+2?", "completion": "4", "label": True}),
    "unpaired, other names": ("unpaired", {"prompt": [USER], "response": [GOOD], "desirable": 1}),
    "scored": ("scored", {"prompt": "2+2?", "responses": ["4", "5"], "scores": [1.0, 0.25]}),
}


def read(example):
    return rows_of(example, detect(list(example), "f"), "f: row 3")


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats(name):
    expected, example = EXAMPLES[name]
    assert detect(list(example), "f").name == expected
    rows = read(example)
    assert [(row.prompt, row.response, row.desirable) for row in rows] == [
        (PROMPT, "4", True),
        *([(PROMPT, "5", False)] if expected != "unpaired" else []),
    ]
    assert {row.pair for row in rows} == ({"f: row 3"} if expected.startswith("paired") else {None})
    assert rows[0].messages == [USER] and rows[0].source == "f: row 3"


def test_transcripts_as_text():
    chosen, rejected = read({"chosen": f"{HH} 4\n", "rejected": f"{HH} 5"})
    assert chosen.prompt == (("user", "2+2?"), ("assistant", "Why?"), ("user", "Because."))
    assert (chosen.response, rejected.response) == ("4", "5")


def test_canonical_rows_keep_pair_and_source():
    example = {"prompt": [USER], "response": "4", "desirable": True, "pair": "a: row 1", "source": "a: row 1"}
    assert detect(list(example), "f").name == "canonical"
    (row,) = read(example)
    assert (row.pair, row.source, row.prompt) == ("a: row 1", "a: row 1", PROMPT)
    assert read({**example, "pair": None})[0].pair is None


def test_scores_at_the_mean_are_on_neither_side():
    rows = read({"prompt": "p", "responses": list("abc"), "scores": [0.3, 0.2, 0.1]})
    assert [(row.response, row.desirable) for row in rows] == [("a", True), ("c", False)]


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' must be text or a list of messages, not None"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "'prompt' is empty"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "a response is empty"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "'chosen' must be text or a list of messages"),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "the prompt ends with an answer"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "'chosen' must be one answer of the assistant"),
        ({"prompt": [{"role": "bot", "content": "x"}], "chosen": "a", "rejected": "b"}, "has the role 'bot'"),
        ({"prompt": [{"role": "user", "content": ["x"]}], "chosen": "a", "rejected": "b"}, "content is not text"),
        ({"chosen": "just text", "rejected": "other text"}, "without the turns 'Human:' and 'Assistant:'"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "'chosen' does not end with an answer"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD, BAD]}, "differ before their last answers"),
        ({"prompt": "p", "completion": "a", "label": "yes"}, "the label 'yes' is not true, false, 1 or 0"),
        ({"prompt": "p", "completion": "a", "label": None}, "the label None"),
        ({"prompt": "p", "completion": [USER], "label": 1}, "a response must be text, or one message"),
        ({"prompt": "p", "responses": ["a"], "scores": [1.0, 2.0]}, "lists of the same length"),
        ({"prompt": "p", "responses": "ab", "scores": [1.0, 2.0]}, "lists of the same length"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, float("nan")]}, "not a finite number"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 1.0]}, "all scores are equal"),
        ({"prompt": "p", "responses": [], "scores": []}, "all scores are equal"),
    ],
)
def test_bad_rows(example, reason):
    with pytest.raises(BadRow, match=reason):
        read(example)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text"], "f: no preference format has the columns text; rename them.*paired: prompt, chosen, rejected"),
        (["prompt", "chosen"], "no preference format"),
        (["prompt", "chosen", "rejected", "completion", "label"], "fit paired and .*unpaired; drop those"),
    ],
)
def test_detection_never_guesses(columns, message):
    with pytest.raises(ValueError, match=message):
        detect(columns, "f")
