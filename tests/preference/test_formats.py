"""Columns tell the format, exactly; what they do not tell is refused by name, and the user's own names are taken."""

import pytest

from fgrpo_plugin.preference.formats import BadRow, Notes, detect, renamed, rows_of

USER, GOOD, BAD = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
PROMPT = (("user", "2+2?"),)
CANONICAL = {"prompt": [USER], "response": "4", "desirable": True, "pair": "p", "source": "s"}


def read(example, columns=None, notes=None):
    example = renamed(example, columns or {})
    return rows_of(example, detect(list(example), "f", columns, example), "f: row 3", notes)


def test_canonical_rows_keep_pair_and_source():
    example = {"prompt": [USER], "response": "4", "desirable": True, "pair": "a: row 1", "source": "a: row 1"}
    assert detect(list(example), "f").format.name == "canonical"
    (row,) = read(example)
    assert (row.pair, row.source, row.prompt) == ("a: row 1", "a: row 1", PROMPT)
    for given, name in ((None, None), ("", None), (7, "7")):
        assert read({**example, "pair": given})[0].pair == name
    with pytest.raises(BadRow, match="'pair' must be text or a whole number"):
        read({**example, "pair": ["a"]})


def test_a_canonical_response_is_taken_as_it_is_though_it_looks_like_turns():
    text = "Human: hi\n\nAssistant: ho"
    assert read({**CANONICAL, "response": text})[0].response == text


@pytest.mark.parametrize(
    "example",
    [
        {**CANONICAL, "label": 0},
        {**CANONICAL, "completion": "5"},
        {"prompt": "p", "response": "4", "desirable": True, "label": 0},
        {"prompt": "p", "response": "4", "completion": "5", "label": True},
        {"prompt": "p", "responses": ["a", "b"], "completions": ["c", "d"], "scores": [1, 2]},
        {"prompt": "p", "responses": ["a", "b"], "ratings": [2, 1], "scores": [1, 2]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "system": "x", "system_prompt": "y"},
        {"question": "p", "instruction": "q", "response_0": "a", "response_1": "b", "preference": 0},
        {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1},
        {"conversations": [USER], "messages": [USER], "chosen": "4", "rejected": "5"},
        {"prompt": "p", "question": "q", "response_j": "a", "response_k": "b"},
    ],
)
def test_two_columns_that_could_both_be_meant_are_refused_until_one_is_chosen(example):
    with pytest.raises(ValueError, match=r"could both be (meant|the prompt)") as refused:
        read(example)
    first, _, second = str(refused.value).split("the columns ")[1].split(" could")[0].split(" ")
    prompts = "the prompt" in str(refused.value)
    proposed = f"{{prompt: [{first}, {second}]}}" if prompts else f"{{{first}: {second}}}, --column {first}={second}"
    assert f"data.preference.columns={proposed}" in str(refused.value)
    # The remedy helps where the two are names of one thing; two prompts need one of them left out.
    one, other = read(example, {second: None}), read(example, {first: None})
    assert one and other
    if prompts:
        texts = [rows[0].prompt[-1][1] for rows in (one, other, read(example, {"prompt": [first, second]}))]
        assert texts[2] == f"{texts[0]}\n{texts[1]}"
    elif first != "conversations":  # names of one thing: either is chosen
        assert read(example, {first: first}) == one and read(example, {first: second}) == other


def test_the_column_that_is_chosen_is_read_and_the_other_one_is_said_not_to_be():
    example = {"prompt": "p", "response": "a", "desirable": True, "label": 0}
    for columns, side, unread in (
        ({"label": "desirable"}, True, "label"),
        ({"label": "label"}, False, "desirable"),
    ):
        renamed_example = renamed(example, columns)
        layout = detect(list(renamed_example), "f", columns, renamed_example)
        (row,) = rows_of(renamed_example, layout, "f: row 0")
        assert row.desirable is side and layout.ignored == (unread,)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["text"], ["f: no preference format has the columns text; rename them", "paired: prompt, chosen, rejected"]),
        (
            ["question", "chosen", "rejected"],
            [
                "paired (prompt, chosen, rejected) lacks prompt",
                "columns={prompt: question}",
                "--column prompt=question",
            ],
        ),
        (["prompt", "preferred_response", "rejected"], ["lacks chosen", "{chosen: preferred_response}"]),
        (["prompt", "answer", "label"], ["lacks completion", "{completion: answer}"]),
        (["prompt", "answers", "scores"], ["lacks responses", "{responses: answers}"]),
        (["prompt", "chosen"], ["paired (prompt, chosen, rejected) lacks rejected"]),
        (
            ["source", "instruction", "chosen_response", "rejected_response", "chosen_avg_rating"],
            ["{prompt: instruction, chosen: chosen_response, rejected: rejected_response}"],
        ),
        (["message_tree_id", "prompt"], ["trees of messages", "prompt, responses (a list), scores"]),
        (
            ["prompt", "chosen", "rejected", "completion", "label"],
            ["fit paired and unpaired; leave out those that are not meant", "{completion: null, label: null}"],
        ),
    ],
)
def test_detection_never_guesses(columns, words):
    with pytest.raises(ValueError) as refused:
        detect(columns, "f", None, {"chosen": "x"})
    for part in words:
        assert part in str(refused.value)


def test_ratings_of_single_responses_are_refused_with_what_would_serve():
    example = {"prompt": "p", "response": "r", "helpfulness": 4, "coherence": 3.5, "note": "x"}
    with pytest.raises(
        ValueError, match=r"ratings \(helpfulness, coherence\).*write one row for each prompt: prompt, "
    ):
        detect(list(example), "f", None, example)


def test_columns_that_are_named_are_moved_joined_taken_out_of_objects_and_left_out():
    example = {"question": "q", "more": "m", "empty": " ", "in": {"a": {"b": "deep"}}, "chosen": "x", "rejected": "y"}
    assert read(example, {"prompt": "question"})[0].prompt == (("user", "q"),)
    assert read(example, {"prompt": ["question", "empty", "more"]})[0].prompt == (("user", "q\nm"),)
    nested = {key: example[key] for key in ("in", "chosen", "rejected")}
    assert read(nested, {"prompt": "in.a.b"})[0].prompt == (("user", "deep"),)
    with pytest.raises(BadRow, match="the column 'context' conditions"):  # the rest of an object is not lost
        read({"context": {"q": "deep", "tools": "t"}, "chosen": "x", "rejected": "y"}, {"prompt": "context.q"})
    assert renamed(example, {"prompt": "question", "more": None})["more"] == "m"  # left out of reading alone
    with pytest.raises(BadRow, match=r"there is no column 'in\.x'"):
        renamed(example, {"prompt": "in.x"})
    later = {"question": "q", "chosen": "x", "rejected": "y"}  # a row without one of the columns
    assert read(later, {"prompt": ["question", "more"]})[0].prompt == (("user", "q"),)
    with pytest.raises(BadRow, match="there is no column 'more' or 'other'"):
        renamed(later, {"prompt": ["more", "other"]})
    with pytest.raises(BadRow, match="prompt is joined of columns that are not all text"):
        renamed(example, {"prompt": ["question", "in"]})


def test_a_column_that_another_one_takes_the_name_of_is_not_read():
    example = {"prompt": "old", "question": "new", "chosen": "a", "rejected": "b"}
    assert read(example, {"prompt": "question"})[0].prompt == (("user", "new"),)


def test_what_fits_two_formats_of_different_columns_is_refused_though_one_has_more():
    example = {"conversations": [USER], "chosen": "4", "rejected": "5", "label": True}
    with pytest.raises(ValueError, match="fit paired_conversations and unpaired_conversations"):
        read(example)
    assert len(read(example, {"label": None})) == 2


def test_a_system_column_is_the_first_message():
    example = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for name in ("system", "system_prompt"):
        assert read({**example, name: "Be short."})[0].prompt == (("system", "Be short."), ("user", "p"))
    for nothing in ("", " ", None):
        assert read({**example, "system": nothing})[0].prompt == (("user", "p"),)
    prompt = [{"role": "system", "content": "Be short."}, USER]
    assert len(read({**example, "prompt": prompt, "system": "Be short."})[0].prompt) == 2
    with pytest.raises(BadRow, match="different system messages"):
        read({**example, "prompt": prompt, "system": "Be long."})
    two = [*prompt[:1], {"role": "system", "content": "Be long."}, USER]
    with pytest.raises(BadRow, match="different system messages"):
        read({**example, "prompt": two, "system": "Be short."})
    with pytest.raises(BadRow, match="a system message that is not text"):
        read({**example, "system": ["x"]})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "weather"}}]),
        ("initial_reason_steps", "Step 1: it begins."),
        ("history", [["earlier question", "earlier answer"]]),
        ("context", "A passage."),
        ("chatHistory", "earlier"),
        ("documents", [{"title": "t"}]),
        ("images", [b"\x89PNG"]),
        ("reasoning", "because"),
        ("input", "the table"),
        ("table", "a b"),
        ("image_url", "https://x"),
        ("persona", "p"),
        ("hint", "think of a"),
    ],
)
def test_what_conditions_the_answers_is_never_dropped(column, value):
    example = {"prompt": "p", "chosen": "a", "rejected": "b", column: value}
    if value == "p":
        value = example[column] = "another"
    with pytest.raises(BadRow, match=f"the column '{column}' conditions the responses and is not read.*{column}: null"):
        read(example)
    assert read(example, {column: None})[0].prompt == (("user", "p"),)  # on purpose
    for nothing in (None, "", [], {}):
        assert read({**example, column: nothing})


def test_text_that_stands_in_a_prompt_by_chance_or_in_an_answer_is_not_read():
    example = {"prompt": "Tell of a pirate ship", "chosen": "Paris is the capital", "rejected": "b"}
    for column, value in (("persona", "pirate"), ("context", "the capital")):
        with pytest.raises(BadRow, match=f"'{column}' conditions"):
            read({**example, column: value})
    passage = "A long passage that stands in the prompt as a whole, and so is read."
    assert read({**example, "prompt": f"{passage}\nWhat is it?", "passage": passage})
    with pytest.raises(BadRow, match="'passage' conditions"):
        read({**example, "chosen": f"{passage} Yes.", "passage": passage})


def test_a_column_that_differs_from_what_is_read_by_more_than_spaces_is_not_dropped():
    example = {"prompt": "Sort this list", "chosen": "a", "rejected": "b"}
    assert read({**example, "instruction": " Sort  this\nlist "})
    with pytest.raises(BadRow, match="'instruction' conditions"):
        read({**example, "instruction": "SORT this list"})


def test_a_column_that_repeats_what_is_read_or_tells_about_it_drops_nothing():
    answers = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert read({"prompt": "2+2?", "messages": [USER, GOOD], **answers})[0].prompt == PROMPT
    example = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for column in ("prompt_id", "context_length", "system_model", "input_tokens", "source", "reviewer"):
        assert read({**example, column: "text"})
    assert read({**example, "turns": 3, "context": True})


def test_a_pair_has_one_answer_on_each_side_and_different_ones():
    example = {"prompt": "p", "chosen": ["a"], "rejected": ["b"]}
    assert [row.pair for row in read(example)] == ["f: row 3"] * 2
    assert {row.pair for row in read({**example, "rejected": ["b", "c"]})} == {None}
    with pytest.raises(BadRow, match="chosen and rejected are the same"):
        read({**example, "rejected": ["b", "a"]})
    assert read({**example, "rejected": ["b", "b"]})  # two rows that are alike, on one side
    with pytest.raises(BadRow, match="'rejected' is missing"):
        layout = detect(list(example), "f")
        rows_of({"prompt": "p", "chosen": "a"}, layout, "f: row 1")


def test_notes_count_over_the_rows_of_a_file():
    notes = Notes()
    for _ in range(2):
        read({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}, notes=notes)
        read({"prompt": "p", "response_0": "a", "response_1": "b", "preference": "tie"}, notes=notes)
    assert (notes.at_mean, notes.ties) == (2, 2)
