"""Word problems from where they are published, or from the user's files; some are held out for good."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo_plugin import tables
from fgrpo_plugin.data.math_sets import MATH_SETS
from fgrpo_plugin.eval.problem_sets import question_and_answer
from fgrpo_plugin.eval.scoring import last_number
from fgrpo_plugin.realmodel.options import RealModelError

ONE_STEP = "mawps_singleop"
"""How the file of MAWPS begins whose problems take one operation, as published."""
HELD_OUT, LEAST = 400, 100
"""Problems held out, where so many at least are left to train on."""


@dataclass(frozen=True)
class Problem:
    """A problem and its answer, a number as text."""

    text: str
    answer: str


def read_problems(data: Sequence[Path]) -> list[Problem]:
    """Every problem once, in an order that depends on their texts alone.

    Args:
        data: files, and folders of files; of a folder MAWPS's single-operation problems where it has them, else
            every file. None: MAWPS from where it is published.

    Raises:
        RealModelError: nothing can be read, a column is missing, or an answer holds no number.
    """
    found: dict[str, str] = {}
    for place, rows in _tables(data):
        for number, row in enumerate(rows):
            problem = _problem(row, place, number)
            found.setdefault(problem.text, problem.answer)
    return [Problem(text, found[text]) for text in sorted(found, key=_order)]


def split(problems: Sequence[Problem], held_out: int = HELD_OUT) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems: the first `held_out` are held out, at most a half where there are few.

    Raises:
        RealModelError: fewer than 16 problems.
    """
    if len(problems) < 16:
        raise RealModelError(f"DATA: {len(problems)} problems are too few to train on and hold some out; give 16.")
    count = held_out if len(problems) >= held_out + LEAST else min(held_out, len(problems) // 2)
    return list(problems[count:]), list(problems[:count])


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tables(data: Sequence[Path]) -> Iterable[tuple[str, Iterable[dict[str, Any]]]]:
    if not data:
        known = MATH_SETS["mawps"]
        for part in known.splits:
            try:
                yield known.hub, tables.load(known.hub, part, config=known.config, split_setting="--split").rows
            except ValueError as reason:
                raise RealModelError(
                    f"{known.hub} cannot be read ({reason}); name a file or folder of problems: DATA=..."
                ) from None
        return
    for path in data:
        files = [path]
        if path.is_dir():
            every = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".json", ".parquet"))
            files = [file for file in every if file.name.startswith(ONE_STEP)] or every
            if not files:
                raise RealModelError(f"DATA={path} holds no .jsonl, .json or .parquet file; name another folder.")
        for file in files:
            try:
                yield f"DATA={file}", tables.rows(file)
            except ValueError as reason:
                raise RealModelError(f"DATA={file} cannot be read ({reason}).") from None


def _problem(row: dict[str, Any], place: str, number: int) -> Problem:
    try:
        asked, answer = question_and_answer(row)
    except ValueError as reason:
        raise RealModelError(f"{place}: {reason}.") from None
    text = asked if isinstance(asked, str) else str(asked[-1].get("content") or "") if asked else ""
    value = last_number(str(answer)) if isinstance(answer, str | int | float) else None
    if not text.strip() or value is None:
        raise RealModelError(f"{place}: row {number} has {'no number as its answer' if text.strip() else 'no text'}.")
    return Problem(text.strip(), f"{value:g}" if abs(value) < 1e6 else str(value))
