"""Token rows against the host's own tokenisation of a rollout, and lengths."""

import pytest

from fgrpo_plugin.preference.formats import LabelledResponse
from fgrpo_plugin.preference.tokens import encode, encode_row, template_problem
from fgrpo_plugin.quickstart.model import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def row(prompt="12+34=", response="46", desirable=True, pair=None):
    turns = (("system", "Add."), ("user", prompt))
    return LabelledResponse(turns, response, desirable, pair, "f: row 0")


def test_prompt_is_token_for_token_that_of_the_hosts_rollouts(tokenizer):
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    builder = create_continuous_token_builder(tokenizer, hf_model_type="qwen2", chat_template_kwargs={})
    for example in (
        row(),
        row("x\n\n y"),
        LabelledResponse((("user", "a"), ("assistant", "b"), ("user", "c")), "d", True, None, ""),
    ):
        assert encode_row(example, tokenizer).prompt_ids == builder.build_initial_tokens(example.messages)


def test_response_is_encoded_by_itself_and_ends(tokenizer):
    encoded = encode_row(row(response="46"), tokenizer)
    assert encoded.response_ids == [*tokenizer("46", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ended = encode_row(row(response="46" + tokenizer.eos_token), tokenizer)
    assert ended.response_ids == encoded.response_ids
    assert (encoded.desirable, encoded.pair, encoded.source) == (True, None, "f: row 0")


def test_too_long(tokenizer):
    short, long = row(pair="a"), row(response="1" * 30, desirable=False, pair="a")
    other = row(response="1" * 30, desirable=False)
    limits = dict(max_prompt_length=100, max_response_length=10)
    with pytest.raises(ValueError, match=r"f: row 0: prompt of \d+ and response of 31 tokens, at most 100 and 10 fit"):
        encode([short, long], tokenizer, **limits)
    dropped = encode([short, long, other, row()], tokenizer, **limits, on_too_long="drop")
    assert [r.pair for r in dropped.rows] == [None] and dropped.rows[0].response_ids == encode_row(
        row(), tokenizer
    ).response_ids
    assert dropped.too_long == {"dropped": 2, "partner dropped": 1}
    cut = encode([short, long], tokenizer, **limits, on_too_long="truncate")
    assert cut.rows[1].response_ids == tokenizer("1" * 10, add_special_tokens=False)["input_ids"]
    assert cut.too_long == {"truncated": 1} and cut.rows[0].digest == encode_row(short, tokenizer).digest
    narrow = encode([short], tokenizer, max_prompt_length=5, max_response_length=10, on_too_long="truncate")
    assert narrow.rows[0].prompt_ids == encode_row(short, tokenizer).prompt_ids[-5:]
    with pytest.raises(ValueError, match="on_too_long='cut' is not known; choose one of"):
        encode([], tokenizer, **limits, on_too_long="cut")


def test_tokenizer_without_template_or_end(tokenizer):
    import copy

    limits = dict(max_prompt_length=100, max_response_length=10)
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode([row()], bare, **limits)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        encode([row()], endless, **limits)


TURNS = "{% for m in messages %}{{ m['role'] + ':' + m['content']BODY }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, None),
        (TURNS.replace("BODY", " + 'X'") + OPEN, "does not end an answer"),
        (TURNS.replace("BODY", " | trim") + OPEN, "changes the answer"),
        ("{{ messages | length }}" + TURNS.replace("BODY", ""), "renders the prompt otherwise"),
    ],
)
def test_template_problems(template, problem, tokenizer):
    import copy

    changed = copy.deepcopy(tokenizer)
    if template is not None:
        changed.chat_template = template
    found = template_problem(row(response=" 46"), changed)
    assert (found is None) if problem is None else problem in found


def test_a_prompt_that_the_template_refuses_is_a_bad_row(tokenizer):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    good = LabelledResponse((("user", "1+1="),), "2", True, "b", "f: row 1")
    rows = [row(pair="a"), LabelledResponse((("user", "1+1="),), "3", False, "a", "f: row 0"), good]
    limits = dict(max_prompt_length=100, max_response_length=10)
    with pytest.raises(ValueError, match=r"row 0: the chat template cannot render the prompt \(no system role"):
        encode(rows, strict, **limits)
    found = encode(rows, strict, on_bad_row="skip", **limits)
    assert [r.source for r in found.rows] == ["f: row 1"] and sum(found.skipped.values()) == 1  # its partner went too


def test_a_pair_that_is_the_same_once_cut_is_dropped(tokenizer):
    rows = [row(response="123456", pair="a"), row(response="123457", desirable=False, pair="a")]
    rows += [row(response="923456", pair="b"), row(response="823457", desirable=False, pair="b")]
    limits = dict(max_prompt_length=100, max_response_length=4)
    found = encode(rows, tokenizer, on_too_long="truncate", **limits)
    assert [r.pair for r in found.rows] == ["b", "b"]
    assert found.too_long == {"truncated": 4, "dropped, since both sides are the same once cut": 2}
