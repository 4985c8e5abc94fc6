"""Messages in every way of writing them, and whatever else they hold."""

import pytest

from fgrpo_plugin.preference.messages import (
    BadRow,
    Notes,
    answered,
    checked_text,
    conditions_answer,
    messages_of,
    prompt_of,
    texts,
    transcript,
)

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("written", "role"),
    [
        ("user", "user"),
        ("human", "user"),
        ("prompter", "user"),
        ("gpt", "assistant"),
        ("bot", "assistant"),
        ("tool", "tool"),
    ],
)
def test_roles_have_several_names(written, role):
    assert messages_of("c", [{"from": written, "value": "x"}], Notes()) == [{"role": role, "content": "x"}]
    assert messages_of("c", {"role": written, "content": "x"}, Notes()) == [{"role": role, "content": "x"}]


def test_what_a_message_holds_beside_role_and_content_is_noted_or_refused():
    notes = Notes()
    messages_of("prompt", [{**USER, "name": "Ann", "weight": 1, "refusal": None, "meta": {"lang": "en"}}], notes)
    assert list(notes.unread) == ["prompt[].name", "prompt[].meta"]
    for key, value in (
        ("tool_calls", [{"function": {"name": "f"}}]),
        ("reasoning_content", "hm"),
        ("thinking", "hm"),
        ("images", ["x.png"]),
    ):
        with pytest.raises(BadRow, match=rf"'prompt\[\]' has '{key}', which conditions responses.*--column {key}=null"):
            messages_of("prompt", [{**USER, key: value}], Notes())
        assert messages_of("prompt", [{**USER, key: value}], Notes([key])) == [USER]
        assert messages_of("prompt", [{**USER, key: None}], Notes()) == [USER]
    with pytest.raises(BadRow, match="both 'role' and 'from'"):
        messages_of("c", [{**USER, "from": "human"}], Notes())


def test_the_prompt_that_an_answer_is_to():
    def of(prompt, value):
        return answered(prompt, "chosen", value, Notes())

    assert of([USER], "a") == ([USER], "a")
    assert of([USER], [ANSWER]) == ([USER], "a")
    assert of([USER], [USER, ANSWER]) == ([USER], "a")
    assert of([USER], [SYSTEM, USER, ANSWER]) == ([SYSTEM, USER], "a")  # what stands before the prompt is kept
    assert of([USER], [USER, ANSWER, {**USER, "content": "r"}, ANSWER])[0] == [USER, ANSWER, {**USER, "content": "r"}]
    assert of([USER], [ANSWER, {**USER, "content": "r"}, ANSWER])[0] == [USER, ANSWER, {**USER, "content": "r"}]
    assert of(None, [USER, ANSWER]) == ([USER], "a")
    with pytest.raises(BadRow, match="a conversation that does not hold the prompt"):
        of([SYSTEM, USER], [USER, ANSWER])  # the system message would be dropped, or put where it was not
    with pytest.raises(BadRow, match="a conversation that does not hold the prompt"):
        of([USER], [ANSWER, {**ANSWER, "content": "b"}, ANSWER])  # two answers without a turn between them
    spaced = [{**USER, "content": " q\n"}, ANSWER]
    assert of([USER], spaced) == (spaced[:1], "a")  # the same but for spaces around it
    with pytest.raises(BadRow, match="holds no prompt before its last response"):
        of(None, [USER, ANSWER, ANSWER])
    with pytest.raises(BadRow, match="without the turns"):
        of(None, "a")
    assert of([USER], "Assistant: a\n") == ([USER], "a")
    assert of([USER], "The Assistant: a") == ([USER], "The Assistant: a")


def test_turns_of_text():
    assert transcript("c", "Human: q\n\nAssistant: a") == [USER, ANSWER]
    assert transcript("c", "\n\nHuman: q\n\nmore\n\nAssistant: a\n")[0]["content"] == "q\n\nmore"
    assert prompt_of("c", "\n\nHuman: q", Notes()) == [USER]
    assert prompt_of("c", "Ask Human: what?", Notes()) == [{"role": "user", "content": "Ask Human: what?"}]
    for text in ("just text", "Once.\n\nHuman: q\n\nAssistant: a", "\n\nAssistant"):
        with pytest.raises(BadRow, match="without the turns"):
            transcript("c", text)
    three = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r"
    expected = [USER, ANSWER, {"role": "user", "content": "r"}]
    assert prompt_of("c", three, Notes()) == prompt_of("c", f"{three}\n\nAssistant: ", Notes()) == expected


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "q"}]',
        '{"from": "human", "value": "q"}',
        ' [ {"role": "user"}]\n',
        "[{'role': 'user', 'content': None}]",
    ],
)
def test_messages_that_were_written_as_text_are_refused(text):
    with pytest.raises(BadRow, match="messages written as text; store them as a list"):
        checked_text("prompt", text)
    for other in ("[{'a': f(1)}]", '{"a": 1}', "[{x}]", "[1]", "[" * 100000, '[{"a": 1}]'):
        assert checked_text("prompt", other) == other


def test_a_message_may_hold_messages_as_text():
    """A user may ask about them; what the column itself holds is meant to be read."""
    odd = {"role": "user", "content": '[{"role": "user", "content": "q"}]'}
    assert messages_of("prompt", [odd], Notes()) == [odd]


def test_half_a_character_is_no_text():
    with pytest.raises(BadRow, match="surrogate"):
        checked_text("prompt", "a\ud800")
    with pytest.raises(BadRow, match="surrogate"):
        messages_of("prompt", [{"role": "user", "content": "a\ud800"}], Notes())
    assert checked_text("prompt", "😀\u2028é") == "😀\u2028é"


def test_texts_are_found_however_deep():
    assert texts({"a": ["x", {"b": " ", "c": "y", "role": "user"}], "d": 1, "e": None, "f": True}) == ["x", "y"]
    assert texts(["[]", " {} ", "null", "None", "nil"]) == ["nil"]  # empty things that were written as text
    assert texts(b"\x00") == ["b'\\x00'"] and texts([]) == [] and texts(1.5) == []


def test_names_that_condition_answers():
    for name in (
        "tools",
        "chat_history",
        "systemPrompt",
        "initial_reason_steps",
        "input",
        "few-shot exemplars",
        "schema",
        "chat_template_kwargs",
    ):
        assert conditions_answer(name), name
    for name in (
        "id",
        "prompt_id",
        "source",
        "score_chosen",
        "system_model",
        "difficulty",
        "",
        "123",
        "num_turns_count",
    ):
        assert not conditions_answer(name), name
