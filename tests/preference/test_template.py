"""Where an answer ends: what rollouts stop at and the template writes, for the families that differ."""

import copy
import json

import pytest

from fgrpo_plugin.preference.template import answer_end, special_tokens, stop_tokens
from fgrpo_plugin.quickstart.model import build_tokenizer

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
CHATML = (
    "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Nothing behind an answer; the next turn's mark ends it (GLM).
OPEN_ENDED = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer():
    made = copy.deepcopy(build_tokenizer())
    made.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|user|>", "<|end|>"]})
    return made


def ids(tokenizer, *texts):
    return [tokenizer.convert_tokens_to_ids(text) for text in texts]


@pytest.mark.parametrize(
    ("family", "template", "eos", "stops", "expected"),
    [
        ("Qwen instruct", CHATML, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"], "<|im_end|>"),
        ("Gemma: eos is not the end of a turn", CHATML, "<|endoftext|>", ["<|endoftext|>", "<|im_end|>"], "<|im_end|>"),
        ("Phi-3: two ends", CHATML.replace("im_end", "end"), "<|endoftext|>", ["<|endoftext|>", "<|end|>"], "<|end|>"),
        ("GLM: the next turn", OPEN_ENDED, "<|endoftext|>", ["<|user|>", "<|endoftext|>"], "<|user|>"),
        (
            "nothing behind an answer",
            OPEN_ENDED.replace("'<|' + m['role'] + '|>'", "''"),
            "<|endoftext|>",
            ["<|user|>"],
            "<|endoftext|>",
        ),
    ],
)
def test_rows_end_where_rollouts_stop(family, template, eos, stops, expected, tokenizer):
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    found = answer_end(tokenizer, {}, ids(tokenizer, *stops))
    assert tokenizer.convert_ids_to_tokens(found.token) == expected and found.problem is None, family


def test_a_template_whose_end_stops_no_rollout_is_a_problem(tokenizer):
    """A conversion of SmolLM2 has the beginning of a turn as its eos, and no generation config."""
    tokenizer.chat_template, tokenizer.eos_token = CHATML, "<|im_start|>"
    found = answer_end(tokenizer)
    assert tokenizer.convert_ids_to_tokens(found.token) == "<|im_end|>"
    number = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (
        "'<|im_end|>', and rollouts stop at '<|im_start|>' alone" in found.problem
        and f"add {number} to" in found.problem
    )


def test_the_runs_arguments_reach_the_template(tokenizer):
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML.replace("'<|im_end|>\\n'", "('<|end|>' if other else '<|im_end|>')")
    stops = ids(tokenizer, "<|end|>")
    assert tokenizer.convert_ids_to_tokens(answer_end(tokenizer, {"other": True}, stops).token) == "<|end|>"
    assert tokenizer.convert_ids_to_tokens(answer_end(tokenizer, {}, stops).token) == "<|im_end|>"


def test_a_tokenizer_without_any_end_is_refused(tokenizer):
    tokenizer.chat_template, tokenizer.eos_token = "{% for m in messages %}{{ m['content'] }}{% endfor %}", None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        answer_end(tokenizer)


def test_a_template_that_refuses_a_conversation_does_not_stop_the_search(tokenizer):
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = "{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert tokenizer.convert_ids_to_tokens(answer_end(tokenizer).token) == "<|im_end|>"


def test_stop_tokens_are_those_of_the_generation_config_else_of_the_model(tmp_path):
    config = {"model_type": "qwen2", "eos_token_id": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stop_tokens(tmp_path) == [5]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert stop_tokens(str(tmp_path)) == [7, 8]
    (tmp_path / "generation_config.json").write_text("{}")
    assert stop_tokens(tmp_path) == [5]
    assert stop_tokens(tmp_path / "nowhere") == []


def test_special_tokens_have_their_texts(tokenizer):
    found = special_tokens(tokenizer)
    assert {"<|im_start|>", "<|im_end|>", "<|user|>"} <= set(found.values())
    assert all(tokenizer.convert_ids_to_tokens(number) == text for number, text in found.items())
