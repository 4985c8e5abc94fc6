"""A problem's responses: which are right, which are the same answer, and what is written."""

import json

import pytest

from fgrpo_plugin.eval.mathematics import evaluate, named_models, scored_row
from fgrpo_plugin.eval.problem_sets import MathProblem, ProblemSet
from fgrpo_plugin.eval.table import read_evaluation


def problem(answer="12"):
    return MathProblem(({"role": "system", "content": "short"}, {"role": "user", "content": "how many?"}), answer)


def said(*texts):
    return [{"text": text, "tokens": len(text), "ended": bool(text)} for text in texts]


def test_a_row_says_what_was_answered_and_who_agrees():
    row = scored_row("7", problem(r"\frac{1}{2}"), said("it is 3", r"\boxed{0.5}", "", r"\boxed{\frac12}", "3.0"))
    assert row["id"] == "7" and row["problem"] == "how many?" and row["answer"] == r"\frac{1}{2}"
    assert row["vote"] == [0, 1, None, 1, 0]
    assert row["right"] == [False, True, False, True, False]
    assert row["given"][2] is None and row["given"][0] == "3"
    assert row["ended"] == [True, True, False, True, True] and row["tokens"] == [7, 11, 0, 15, 3]


def test_an_answer_that_takes_too_long_is_counted_and_wrong(monkeypatch):
    from fgrpo_plugin.eval import mathematics
    from fgrpo_plugin.eval.scoring import TookTooLong, parsed_response

    def slow(text):
        if text == "slow":
            raise TookTooLong("30 s")
        return parsed_response(text)

    monkeypatch.setattr(mathematics, "parsed_response", slow)
    row = scored_row("0", problem("12"), said("12", "slow", "12"))
    assert row["slow"] == [1] and row["right"] == [True, False, True] and row["vote"] == [0, None, 0]


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
    sets = [ProblemSet("one", {"0": problem("1"), "1": problem("2")}), ProblemSet("two", {"0": problem("3")})]
    told, asked = [], []

    def sample(model, chats, output, on_progress):
        asked.append((model, output))
        on_progress(len(chats), len(chats))
        return {key: said("1", "2") for key in chats}

    evaluate(
        {"m": "folder"},
        sets,
        tmp_path,
        sample,
        sampling={"samples": 2},
        follow=lambda what: lambda done, total: told.append((what, done, total)),
    )
    assert asked == [("folder", tmp_path / "m" / "one.jsonl"), ("folder", tmp_path / "m" / "two.jsonl")]
    assert told[:3] == [("m on one", 2, 2), *(("m on one: comparing answers", done, 2) for done in (1, 2))]
    scores = json.loads((tmp_path / "m" / "one.scores.json").read_text())
    assert {key: scores[key] for key in ("model", "from", "set", "sampling")} == {
        "model": "m",
        "from": "folder",
        "set": "one",
        "sampling": {"samples": 2},
    }
    assert [row["right"] for row in scores["rows"]] == [[True, False], [False, True]]
    found = read_evaluation(tmp_path).results["m"]
    assert found["one"].measures["pass@1"].mean == 0.5 and found["two"].measures["pass@2"].mean == 0.0


def test_two_evaluations_do_not_write_one_folder(tmp_path):
    sets = [ProblemSet("one", {"0": problem("1")})]
    how = {"sampling": {}, "follow": lambda what: lambda done, total: None}

    def sample(model, chats, output, on_progress):
        return {key: said("1") for key in chats}

    def another(model, chats, output, on_progress):
        with pytest.raises(ValueError, match=r"another evaluation writes .*/m now; wait until it has ended, or name"):
            evaluate({"m": "folder"}, sets, tmp_path, sample, **how)
        evaluate({"other": "folder"}, sets, tmp_path, sample, **how)
        return sample(model, chats, output, on_progress)

    evaluate({"m": "folder"}, sets, tmp_path, another, **how)
    evaluate({"m": "folder"}, sets, tmp_path, sample, **how)  # it is free again


def test_a_comparison_that_takes_too_long_is_counted_too(monkeypatch):
    from fgrpo_plugin.eval import mathematics
    from fgrpo_plugin.eval.scoring import TookTooLong

    def slow(right, given):
        raise TookTooLong("30 s")

    monkeypatch.setattr(mathematics, "same_answer", slow)
    row = scored_row("0", problem("12"), said("12"))
    assert row["slow"] == [0] and row["right"] == [False]
