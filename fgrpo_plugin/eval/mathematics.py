"""``fgrpo eval math``: sample, score, and keep what a table is made of."""

import contextlib
import fcntl
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.kept import Chats, Responses
from fgrpo_plugin.eval.problem_sets import MathProblem, ProblemSet
from fgrpo_plugin.eval.scoring import TookTooLong, parsed_answer, parsed_response, same_answer
from fgrpo_plugin.eval.table import SCORES
from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.progress import Follow

Progress = Callable[[int, int], None]
Sampler = Callable[[str, Chats, Path, Progress], Responses]
"""Model, chats, output and progress -> responses."""


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Name in tables -> model; `name=model` names it, else the last part of its path does.

    Raises:
        ValueError: two have one name, or a name is no name of a folder.
    """
    found: dict[str, str] = {}
    for given in models:
        name, _, model = given.rpartition("=") if "=" in given else (Path(given).name, "", given)
        if not re.fullmatch(r"[\w.+@-]+", name) or name in (".", ".."):
            raise ValueError(f"MODEL {given}: {name!r} cannot be a folder's name; name it: NAME={model}.")
        if name in found:
            raise ValueError(f"two models are called {name}; name one: NAME={model}.")
        found[name] = model
    return found


def evaluate(
    models: Mapping[str, str],
    sets: Sequence[ProblemSet],
    folder: Path,
    sample: Sampler,
    *,
    sampling: Mapping[str, Any],
    follow: Follow,
) -> None:
    """Sample every model on every set, and write each one's scores beside its responses.

    Args:
        models: name -> folder, or name at the server.
        sets: of problems.
        folder: has `<model>/<set>.jsonl`, the responses, and `<model>/<set>.scores.json`.
        sample: gives a model's responses, and keeps them in a file.
        sampling: settings, for the scores.
        follow: what is under way -> what is told how far it is.

    Raises:
        ValueError: a model could not be sampled, or `folder` holds responses of other settings.
    """
    with contextlib.ExitStack() as held:
        for name in models:
            held.enter_context(_alone(folder / name))
        for (name, model), one in itertools.product(models.items(), sets):
            chats = {key: list(problem.chat) for key, problem in one.asked.items()}
            output = folder / name / f"{one.name}.jsonl"
            responses = sample(model, chats, output, follow(f"{name} on {one.name}"))
            scored = follow(f"{name} on {one.name}: comparing answers")
            rows = []
            for number, (key, problem) in enumerate(one.asked.items()):
                rows.append(scored_row(key, problem, responses[key]))
                scored(number + 1, len(one.asked))
            scores = {"model": name, "from": model, "set": one.name, "sampling": dict(sampling), "rows": rows}
            write_whole(output.with_name(f"{one.name}{SCORES}"), (json.dumps(scores, indent=1) + "\n").encode())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a folder that another evaluation writes: lines would be mixed. A dead one's claim ends."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another evaluation writes {folder} now; wait until it has ended, or name another --output."
            ) from None
        yield
    finally:
        os.close(held)


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
