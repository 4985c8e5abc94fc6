"""Responses by vLLM itself, of the tiny model: kept as they come, continued, and refused for other settings."""

import pytest

from fgrpo_plugin.eval.sampling import responses
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

HOW = {"samples": 1, "temperature": 0.0, "max_tokens": 6, "seed": 0}
CHATS = {str(number): [{"role": "user", "content": f"{number}+1="}] for number in range(3)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = build_tokenizer()
    return save_model(build_model(tokenizer, 0), tokenizer, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "responses.jsonl"
    seen = []
    found = responses(model, CHATS, output, on_progress=lambda done, total: seen.append((done, total)), **HOW)
    return output, found, seen


def test_every_prompt_has_its_responses_and_progress_is_told(made):
    _, found, seen = made
    assert list(found) == list(CHATS) and seen[-1] == (3, 3) and seen[0][1] == 3
    for given in found.values():
        assert len(given) == 1
        assert 1 <= given[0]["tokens"] <= 6 and given[0]["ended"] == (given[0]["tokens"] < 6 or given[0]["ended"])


def test_what_is_there_is_not_made_again_and_a_line_that_broke_off_is(made, model, tmp_path):
    output, found, _ = made
    text = output.read_text()
    half = tmp_path / "half.jsonl"
    half.write_text(text[: text.rstrip("\n").rfind("\n") + 20])
    assert responses(model, CHATS, half, **HOW) == found and half.read_text() == text
    nowhere = model.parent / "moved"
    model.rename(nowhere)  # complete: the model is not needed
    try:
        assert responses(model, CHATS, half, **HOW) == found
    finally:
        nowhere.rename(model)


def test_several_greedy_samples_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="2 samples at temperature 0 are the same response"):
        responses(model, CHATS, tmp_path / "new.jsonl", **{**HOW, "samples": 2})


@pytest.mark.parametrize(
    "changed", [{"max_tokens": 7}, {"temperature": 1.0}, {"seed": 1}, {"samples": 2, "temperature": 1.0}]
)
def test_a_file_of_other_settings_is_refused(made, model, changed):
    output, _, _ = made
    with pytest.raises(ValueError, match="was made with other settings; remove it"):
        responses(model, CHATS, output, **{**HOW, **changed})


def test_a_model_that_vllm_cannot_load_names_the_log_and_keeps_what_was_done(tmp_path):
    with pytest.raises(ValueError, match=r"vLLM could not sample .*nowhere: .*\(log: .*new\.log\)"):
        responses(tmp_path / "nowhere", CHATS, tmp_path / "new.jsonl", **HOW)
    assert (tmp_path / "new.jsonl").is_file()
