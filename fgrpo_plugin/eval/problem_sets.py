"""Sets of mathematical problems in the columns in which they are published, or in verl's format."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.sets import AskedSet, files_of_sets, read_set, text_or_chat, unlike_names

COLUMNS = (
    ("Body+Question", "Answer"),
    ("input", "target"),
    ("question", "answer"),
    ("problem", "answer"),
    ("problem", "solution"),
)
"""Pairs of columns of a problem and its answer, the first that a row has; `a+b` is two columns."""
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class MathProblem:
    """A problem as the model is asked it.

    Attributes:
        chat: messages.
        answer: the right one, as text.
    """

    chat: tuple[dict[str, str], ...]
    answer: str


ProblemSet = AskedSet[MathProblem]


def question_and_answer(row: Mapping[str, Any]) -> tuple[str | list[dict[str, str]], Any]:
    """A row's problem, as text or in verl's format as messages, and what stands in its column of the answer.

    Raises:
        ValueError: no pair of columns is known; the reason alone.
    """
    if isinstance(row.get("prompt"), list | tuple) and isinstance(row.get("reward_model"), Mapping):
        chat = [dict(message) for message in row["prompt"] if isinstance(message, Mapping)]
        return chat, row["reward_model"].get("ground_truth")
    pair = next((pair for pair in COLUMNS if all(name in row for name in [*pair[0].split("+"), pair[1]])), None)
    if pair is None:
        known = "; ".join(" and ".join(pair).replace("+", ", ") for pair in COLUMNS)
        raise ValueError(
            f"no columns of a problem and its answer (found: {', '.join(map(str, row)) or 'none'}); rename them to one "
            f"of: {known}; or to verl's prompt (messages) and reward_model"
        )
    *first, last = (row[name].strip() if isinstance(row[name], str) else "" for name in pair[0].split("+"))
    before = (part if part[-1] in ".?!," else f"{part}." for part in first if part)
    return (" ".join([*before, last]) if last else ""), row[pair[1]]


def read_sets(data: Sequence[Path], *, limit: int | None = None, instruction: str = INSTRUCTION) -> list[ProblemSet]:
    """Read every set.

    Args:
        data: files and folders of files.
        limit: problems of each set, drawn once for all by what is asked; None is all of them.
        instruction: said behind each problem; problems in verl's format are asked as they are.

    Raises:
        ValueError: a file cannot be read, a column is missing, an answer cannot be compared, two sets have a name.
    """
    item = partial(_problem, instruction=instruction)
    return unlike_names([read_set(file, item, limit=limit) for file in files_of_sets(data)])


def _problem(row: Mapping[str, Any], number: int, instruction: str) -> MathProblem:
    from fgrpo_plugin.eval.scoring import parsed_answer

    asked, given = question_and_answer(row)
    chat = text_or_chat(f"{asked}\n{instruction}" if isinstance(asked, str) and asked and instruction else asked)
    if not chat:
        raise ValueError(f"row {number} asks nothing")
    answer = "" if given is None or isinstance(given, bool) else _text(given).strip()
    if "####" in answer:  # GSM8K's solutions
        answer = answer.rpartition("####")[2].strip()
    if not parsed_answer(answer):
        raise ValueError(f"row {number} has no answer that can be compared ({answer[:60]!r})")
    return MathProblem(tuple(chat), answer)


def _text(given: Any) -> str:
    """Write as text: a number in full, because an exponent is read as Euler's number; none as nothing."""
    if isinstance(given, float):
        return f"{Decimal(repr(float(given))):f}" if math.isfinite(given) else ""
    return str(given)
