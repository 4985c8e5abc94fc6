"""The loop: names of models, what is written beside the responses, and that two do not write one folder."""

import json
import os
from dataclasses import dataclass

import pytest

from fgrpo_plugin.eval.evaluating import evaluate, named_models
from fgrpo_plugin.eval.sets import AskedSet


@dataclass(frozen=True)
class Words:
    chat: tuple[dict[str, str], ...]


SETS = [AskedSet(name, {key: Words(({"role": "user", "content": key},)) for key in "01"}) for name in ("one", "two")]


def score(one, responses, output, follow):
    follow("scoring")(len(one.asked), len(one.asked))
    return [{"id": key, "said": responses[key], "from": output.name} for key in one.asked]


def sample(model, chats, output, on_progress):
    on_progress(len(chats), len(chats))
    return {key: f"{model} on {chat[0]['content']}" for key, chat in chats.items()}


def test_models_are_named_by_their_folders_or_by_hand():
    assert named_models(["/models/base", "rl=/runs/1/model", "x/"]) == {
        "base": "/models/base",
        "rl": "/runs/1/model",
        "x": "x/",
    }
    assert named_models(["org/Name-1.5B"]) == {"Name-1.5B": "org/Name-1.5B"}
    for given, why in (
        (["a/model", "b/model"], "two models are called model; name one: NAME=b/model"),
        (["=x"], "cannot be a folder's name"),
        (["a/b=x"], "'a/b' cannot be a folder's name"),
        (["..=x"], "cannot be a folder's name"),
        (["/"], "cannot be a folder's name"),
    ):
        with pytest.raises(ValueError, match=why):
            named_models(given)


def test_scores_stand_beside_the_responses_and_progress_is_told(tmp_path):
    told, asked = [], []

    def sampled(model, chats, output, on_progress):
        asked.append((model, output))
        return sample(model, chats, output, on_progress)

    evaluate(
        {"m": "folder"},
        SETS,
        tmp_path,
        sampled,
        score,
        settings={"kind": "words", "sampling": {"samples": 2}},
        follow=lambda what: lambda done, total: told.append((what, done, total)),
    )
    assert asked == [("folder", tmp_path / "m" / "one.jsonl"), ("folder", tmp_path / "m" / "two.jsonl")]
    assert told[:3] == [("m on one", 2, 2), ("m on one: scoring", 2, 2), ("m on two", 2, 2)]
    assert json.loads((tmp_path / "m" / "one.scores.json").read_text()) == {
        "model": "m",
        "from": "folder",
        "set": "one",
        "kind": "words",
        "sampling": {"samples": 2},
        "rows": [{"id": key, "said": f"folder on {key}", "from": "one.jsonl"} for key in "01"],
    }


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_sampled(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    how = {"settings": {}, "follow": lambda what: lambda done, total: None}
    with pytest.raises(ValueError, match=r"--output: .*file/m cannot be written \(Not a directory\); name another f"):
        evaluate({"m": "folder"}, SETS, tmp_path / "file", None, score, **how)
    (tmp_path / "m").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"--output: .*/m cannot be written \(Permission denied\); name another fol"):
        evaluate({"m": "folder"}, SETS, tmp_path, None, score, **how)


def test_two_evaluations_do_not_write_one_folder(tmp_path):
    how = {"settings": {}, "follow": lambda what: lambda done, total: None}

    def another(model, chats, output, on_progress):
        with pytest.raises(ValueError, match=r"another evaluation writes .*/m now; wait until it has ended, or name"):
            evaluate({"m": "folder"}, SETS, tmp_path, sample, score, **how)
        evaluate({"other": "folder"}, SETS, tmp_path, sample, score, **how)
        return sample(model, chats, output, on_progress)

    evaluate({"m": "folder"}, SETS[:1], tmp_path, another, score, **how)
    evaluate({"m": "folder"}, SETS, tmp_path, sample, score, **how)  # it is free again
