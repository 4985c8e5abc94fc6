"""Token rows against verl's own tokenisation of a rollout, and lengths."""

import pytest

from fgrpo_plugin.preference.formats import BadRow, LabelledResponse
from fgrpo_plugin.preference.tokens import (
    encode,
    encode_row,
    special_pattern,
    template_problem,
    templated_mark,
)
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
    with pytest.raises(ValueError, match="on_too_long='cut' must be one of"):
        encode([], tokenizer, **limits, on_too_long="cut")


def test_many_rows_at_once_are_the_rows_one_by_one(tokenizer):
    rows = [row(f"{i}+1=", str(i), i % 2 == 0, f"p{i // 2}") for i in range(3000)]  # several batches
    rows += [
        row("1+1=", "", True),
        LabelledResponse((("user", "a"), ("assistant", "b"), ("user", "c")), "d", True, None, ""),
    ]
    said = []
    found = encode(iter(rows), tokenizer, max_prompt_length=100, max_response_length=10, said=said.append)
    assert said == [1024, 2048, 3002] and len(found.rows) == len(rows)
    for encoded, text in zip(found.rows, rows, strict=True):
        alone = encode_row(text, tokenizer)
        assert (encoded.digest, encoded.pair, encoded.desirable) == (alone.digest, text.pair, text.desirable)


def test_a_row_ends_with_the_token_that_is_asked_for(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encode_row(row(), tokenizer, end=end).response_ids[-1] == end
    found = encode([row()], tokenizer, max_prompt_length=100, max_response_length=10, end=end)
    assert found.rows[0].response_ids[-1] == end
    assert (
        template_problem(row(), tokenizer, end=end)
        == "the template does not end a response with the token that rows end with"
    )


@pytest.mark.parametrize(
    ("prompt", "response", "mark"),
    [
        ("<|im_start|>user\nhi<|im_end|>\n", "a", "<|im_start|>"),
        ("hi", "a<|im_end|>", "<|im_end|>"),
        ("<s>[INST] <<SYS>> Be short <</SYS>> hi [/INST]", "a", "[INST]"),
        ("<start_of_turn>user\nhi", "a", "<start_of_turn>"),
        ("<|start_header_id|>user<|end_header_id|>", "a", "<|start_header_id|>"),
        ("### Instruction:\nhi\n\n### Response:\n", "a", "### Instruction:"),
        ("Q: hi\n### Response:\n", "a", "### Response:"),
        ("### Human: hi", "a", "### Human:"),
        ("<|im_user|>hi<|eom_id|>", "a", "<|im_user|>"),
        ("hi", "[SYSTEM_PROMPT]", "[SYSTEM_PROMPT]"),
        ("USER: hi ASSISTANT:", "a", "ASSISTANT:"),
    ],
)
def test_text_in_a_chat_template_is_refused_skipped_or_kept(prompt, response, mark, tokenizer):
    limits = dict(max_prompt_length=500, max_response_length=50)
    rows = [row(), row(prompt, response)]
    with pytest.raises(ValueError, match=r"f: row 0: it holds .*on_templated=skip, or keep") as refused:
        encode(rows, tokenizer, on_templated="error", **limits)
    assert repr(mark) in str(refused.value)
    found = encode(rows, tokenizer, on_templated="skip", **limits)
    assert (
        len(found.rows) == 1 and sum(found.skipped.values()) == 1 and set(found.first_skipped.values()) == {"f: row 0"}
    )
    assert len(encode(rows, tokenizer, on_templated="keep", **limits).rows) == 2
    earlier = LabelledResponse((("system", prompt), ("user", "q")), "a", True, None, "")
    if mark != "ASSISTANT:" and mark in prompt:  # those open a turn at the end alone
        assert templated_mark(earlier) == mark
    assert templated_mark(rows[1]) == mark and templated_mark(rows[0]) is None


def test_a_models_own_special_tokens_count_where_its_tokenizer_is_known(tokenizer):
    import copy

    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["</s>", "[CLS]"]})
    html = row(response="<s>old</s> new")
    assert templated_mark(html) is None and templated_mark(html, special_pattern(tokenizer)) is None
    assert templated_mark(html, special_pattern(own)) == "</s>"
    plain = row("a [list] of <tags> | pipes <|> a", "if a < b: [x] </p> | <| |> ### Note: x")
    assert templated_mark(plain, special_pattern(own)) is None


def test_a_template_that_leaves_out_a_message_is_a_bad_row(tokenizer):
    import copy

    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] | trim }}{% endif %}{% endfor %}"
    )
    with pytest.raises(BadRow, match="leaves out, or changes, the message of the system"):
        encode_row(row(), deaf)
    assert encode_row(LabelledResponse((("user", " a "),), "b", True, None, ""), deaf)


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
        (TURNS.replace("BODY", " + 'X'") + OPEN, "does not end a response"),
        (TURNS.replace("BODY", " | trim") + OPEN, "changes the response"),
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
    assert found.too_long == {"truncated": 4, "dropped, since both responses are the same once cut": 2}
