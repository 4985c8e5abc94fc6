"""Responses by vLLM itself, of the tiny model: kept as they come, continued, and refused for other settings."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest

from fgrpo_plugin.eval.sampling import Engine, Sampling, responses
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

HOW = Sampling(max_tokens=6)
CHATS = {str(number): [{"role": "user", "content": f"{number}+1="}] for number in range(3)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = build_tokenizer()
    return save_model(build_model(tokenizer, 0), tokenizer, tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "responses.jsonl"
    seen = []
    found = responses(model, CHATS, output, HOW, on_progress=lambda done, total: seen.append((done, total)))
    return output, found, seen


def test_every_prompt_has_its_responses_and_progress_is_told(made):
    output, found, seen = made
    assert list(found) == list(CHATS) and seen[-1] == (3, 3) and seen[0] == (0, 3)
    for given in found.values():
        assert len(given) == 1
        assert 1 <= given[0]["tokens"] <= 6 and given[0]["ended"] == (given[0]["tokens"] < 6 or given[0]["ended"])
    assert sorted(file.name for file in output.parent.iterdir()) == ["responses.jsonl", "responses.log"]


def test_what_is_there_is_not_made_again_and_a_line_that_broke_off_is(made, model, tmp_path):
    output, found, _ = made
    text = output.read_text()
    half = tmp_path / "half.jsonl"
    half.write_text(text[: text.rstrip("\n").rfind("\n") + 20])
    assert responses(model, CHATS, half, HOW) == found and half.read_text() == text
    log = half.with_suffix(".log")
    log.unlink()
    assert responses(model, CHATS, half, HOW) == found and not log.exists()  # complete: vLLM is not started
    assert list(responses(model, {"2": CHATS["2"]}, half, HOW)) == ["2"] and not log.exists()


def test_several_samples_of_a_prompt_that_vllm_is_given_another_template(model, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    how = Sampling(samples=3, temperature=1.0, max_tokens=4)
    found = responses(model, CHATS, tmp_path / "new.jsonl", how, engine=Engine(chat_template=template))
    assert all(len(given) == 3 for given in found.values())
    settings = json.loads((tmp_path / "new.jsonl").read_text().splitlines()[0])["settings"]
    of_template = hashlib.sha256(template.read_bytes()).hexdigest()[:16]  # not its place
    assert settings["chat_template"] == of_template and settings["samples"] == 3


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"samples": 2}, "2 samples at temperature 0 are the same response"),
        ({"samples": 0}, "samples=0 must be 1 or more"),
        ({"max_tokens": 0}, "max_tokens=0 must be 1 or more"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"temperature": -0.1}, "temperature=-0.1 must lie between 0 and 10"),
        ({"temperature": float("nan")}, "temperature=nan must lie"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1 must lie"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changed, why):
    with pytest.raises(ValueError, match=why):
        replace(HOW, **changed)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"max_tokens": 7}, "max_tokens 6, now 7"),
        ({"temperature": 1.0}, "temperature 0.0, now 1.0"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"top_p": 0.5}, "top_p 1.0, now 0.5"),
    ],
)
def test_a_file_of_other_settings_is_refused(made, model, changed, said):
    output, _, _ = made
    with pytest.raises(ValueError, match=rf"was made with other settings \({said}\); remove it"):
        responses(model, CHATS, output, replace(HOW, **changed))


def test_other_weights_in_the_folder_are_told_apart_and_the_same_elsewhere_are_not(made, model, tmp_path):
    output, found, _ = made
    moved = shutil.copytree(model, tmp_path / "moved")
    assert responses(moved, CHATS, output, HOW) == found  # complete, and of these weights
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"other settings \(weights "):
        responses(moved, CHATS, output, HOW)


def test_a_model_that_vllm_cannot_load_names_the_log_and_keeps_what_was_done(tmp_path):
    with pytest.raises(ValueError, match=r"vLLM could not sample .*nowhere: .*\(log: .*new\.log\)"):
        responses(tmp_path / "nowhere", CHATS, tmp_path / "new.jsonl", HOW)
    assert (tmp_path / "new.jsonl").is_file() and not (tmp_path / "new.job.json").exists()


def test_a_window_that_is_too_small_says_by_how_much(model, tmp_path):
    how = replace(HOW, max_tokens=100_000)
    with pytest.raises(ValueError, match=r"its window is \d+ tokens, a prompt takes \d+ and max_tokens=100000; lower"):
        responses(model, CHATS, tmp_path / "new.jsonl", how)
