"""A problem's responses: which are right, and which are the same answer."""

from pathlib import Path

from fgrpo_plugin.eval.mathematics import scored_problems, scored_row
from fgrpo_plugin.eval.problem_sets import MathProblem, ProblemSet


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


def test_a_comparison_that_takes_too_long_is_counted_too(monkeypatch):
    from fgrpo_plugin.eval import mathematics
    from fgrpo_plugin.eval.scoring import TookTooLong

    def slow(right, given):
        raise TookTooLong("30 s")

    monkeypatch.setattr(mathematics, "same_answer", slow)
    row = scored_row("0", problem("12"), said("12"))
    assert row["slow"] == [0] and row["right"] == [False]


def test_every_problem_has_its_row_and_progress_is_told():
    told = []
    sums = ProblemSet("sums", {"0": problem("1"), "1": problem("2")})
    rows = scored_problems(
        sums,
        {key: said("1", "2") for key in "01"},
        Path("nowhere"),
        lambda what: lambda done, total: told.append((what, done, total)),
    )
    assert [(row["id"], row["right"]) for row in rows] == [("0", [True, False]), ("1", [False, True])]
    assert told == [("comparing answers", 1, 2), ("comparing answers", 2, 2)]
