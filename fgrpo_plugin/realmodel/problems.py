"""Word problems from where they are published, or from the user's files; some are held out for good."""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from fgrpo_plugin import tables
from fgrpo_plugin.data.math_sets import MATH_SETS
from fgrpo_plugin.eval.problem_sets import question_and_answer
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.realmodel.options import RealModelError

ONE_STEP = "mawps_singleop"
"""How the file of MAWPS begins whose problems take one operation, as published."""
HELD_OUT, LEAST = 400, 100
"""Problems held out, where so many at least are left to train on."""
_DIGITS = re.compile(r"[\d.,]*\d[\d.,]*")
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """A problem and its answer, a number as text without exponent or commas."""

    text: str
    answer: str


def read_problems(data: Sequence[Path], say: Callable[[str], None] = say) -> list[Problem]:
    """Every problem once, in an order that depends on their texts alone; one with several answers is left out.

    Args:
        data: files, and folders of files; of a folder MAWPS's single-operation problems where it has them, else
            every file. Empty: MAWPS from where it is published.
        say: gets a line where problems are left out.

    Raises:
        RealModelError: nothing can be read, a column is missing, or an answer is not one number.
    """
    found: dict[str, dict[str, str]] = {}
    for place, rows in _tables(data):
        for number, row in enumerate(rows):
            problem = _problem(row, place, number)
            found.setdefault(problem.text, {}).setdefault(problem.answer, f"{place}, row {number}")
    if disputed := [answers for answers in found.values() if len(answers) > 1]:
        first = " and ".join(f"{answer} ({where})" for answer, where in disputed[0].items())
        say(f"left out: {len(disputed)} x a problem that stands there with several answers (first: {first})")
    return [Problem(text, *found[text]) for text in sorted(found, key=_order) if len(found[text]) == 1]


def digest(problems: Sequence[Problem]) -> str:
    """Tells these problems in this order from others."""
    return hashlib.sha256(json.dumps([[one.text, one.answer] for one in problems]).encode()).hexdigest()


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
        raise RealModelError(f"{place}: {reason} (row {number}).") from None
    text = asked if isinstance(asked, str) else asked[-1].get("content") if asked else None
    if not isinstance(text, str) or not text.strip():
        raise RealModelError(f"{place}: row {number} has no text ({text!r:.60}); leave the row out.")
    value = _one_number(answer)
    if value is None:
        raise RealModelError(
            f"{place}: row {number} has no number as its answer, or not one alone ({answer!r:.80}); write it as one, "
            "such as 1250 or 0.5, or leave the row out."
        )
    return Problem(text.strip(), np.format_float_positional(value, trim="-"))


def _one_number(answer: Any) -> float | None:
    """An answer as a number; None where it is none or its number could be another than it seems.

    Of a text that counts which follows its last ####, as in GSM8K. Words, units and signs of currency may stand around
    the number; a fraction, a power, a formula or a second number may not.
    """
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | Decimal):
        return None
    value = _of_text(answer) if isinstance(answer, str) else answer
    try:
        return float(value) + 0.0 if value is not None and math.isfinite(value) else None  # without the sign of -0
    except OverflowError:
        return None


def _of_text(answer: str) -> float | None:
    text = answer.rpartition("####")[2].replace("\N{MINUS SIGN}", "-")
    found = list(_DIGITS.finditer(text))
    if len(found) != 1 or any(sign in "\\^√π" or unicodedata.category(sign) == "No" for sign in text):
        return None
    number = found[0][0].rstrip(".,")
    if not _NUMBER.fullmatch(number):
        return None
    before = text[: found[0].start()].rstrip(" $€£")
    negative = before.endswith("-") and not before[-2:-1].isalnum()
    value = float(number.replace(",", ""))
    return -value if negative else value
