"""Scores of responses to mathematical problems."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.kept import Responses
from fgrpo_plugin.eval.problem_sets import MathProblem, ProblemSet
from fgrpo_plugin.eval.scoring import TookTooLong, parsed_answer, parsed_response, same_answer
from fgrpo_plugin.progress import Follow


def scored_problems(one: ProblemSet, responses: Responses, output: Path, follow: Follow) -> list[dict[str, Any]]:
    """A row of scores for each problem; `output`, the responses' file, is not read."""
    scored = follow("comparing answers")
    rows = []
    for number, (key, problem) in enumerate(one.asked.items()):
        rows.append(scored_row(key, problem, responses[key]))
        scored(number + 1, len(one.asked))
    return rows


def scored_row(key: str, problem: MathProblem, responses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A problem's responses, compared with its answer and with one another.

    Returns:
        `id`, `problem`, `answer`; of each response `given` (its answer as text, or None), `vote` (the first response
        with the same answer, or None) and `right`; `ended` and `tokens` as they were sampled; and `slow`, the
        numbers of responses that math-verify had too little time for, which count as wrong.
    """
    slow: set[int] = set()

    def parsed(number: int) -> list[Any]:
        try:
            return parsed_response(responses[number]["text"])
        except TookTooLong:
            slow.add(number)
            return []

    def same(one: list[Any], number: int) -> bool:
        try:
            return same_answer(one, answers[number])
        except TookTooLong:
            slow.add(number)
            return False

    right = parsed_answer(problem.answer)
    answers = [parsed(number) for number in range(len(responses))]
    votes: list[int | None] = []
    for number, answer in enumerate(answers):
        alike = (vote for vote in dict.fromkeys(votes) if vote is not None and same(answers[vote], number))
        votes.append(next(alike, number) if answer else None)
    # Of equal answers one is compared, so that a vote cannot be both right and wrong.
    verdicts = {vote: same(right, vote) for vote in set(votes) if vote is not None}
    return {
        "id": key,
        "problem": problem.chat[-1]["content"],
        "answer": problem.answer,
        "given": [str(answer[-1]) if answer else None for answer in answers],
        "vote": votes,
        "right": [vote is not None and verdicts[vote] for vote in votes],
        "ended": [bool(one["ended"]) for one in responses],
        "tokens": [one["tokens"] for one in responses],
        "slow": sorted(slow),
    }
