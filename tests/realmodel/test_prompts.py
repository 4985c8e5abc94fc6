"""Shares of right, parsable and cut responses, and the problems that can teach something, by hand."""

from fgrpo_plugin.realmodel.problems import Problem
from fgrpo_plugin.realmodel.prompts import CHOSEN, PROMPTS, Shares, chat, mixed, shares, verl_rows

PROBLEMS = {"a": Problem("2 + 2?", "4"), "b": Problem("1 + 2?", "3"), "c": Problem("0 + 1?", "1")}


def given(*texts):
    return [{"text": text, "tokens": 10 * (n + 1), "ended": "..." not in text} for n, text in enumerate(texts)]


def test_shares_are_over_every_response():
    found = shares(PROBLEMS, {"a": given("It is 4.", "I do not know"), "b": given("3 or 2", "so 3 ...")})
    assert found == Shares(right=0.5, parsable=0.75, cut=0.25, tokens=15.0)


def test_a_problem_teaches_where_some_responses_are_right_and_some_are_not():
    responses = {"a": given("4", "4"), "b": given("3", "4"), "c": given("7", "none")}
    assert mixed(PROBLEMS, responses) == ["b"]


def test_rows_of_verl_hold_the_chat_and_the_answer():
    (row,) = verl_rows(PROBLEMS, ["b"], CHOSEN)
    assert row["prompt"] == chat(PROBLEMS["b"], CHOSEN) and row["prompt"][-1] == {"role": "user", "content": "1 + 2?"}
    assert row["reward_model"]["ground_truth"] == "3" and row["extra_info"] == {"index": "b"}
    assert len(PROMPTS) == 3 and CHOSEN in PROMPTS
