"""Whether a response gives the right answer."""

import math
import re
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def last_number(text: str) -> float | None:
    """Return the last number anywhere in a text; None where there is none.

    Commas inside a number are dropped; a minus sign counts unless a digit or letter stands before it, as in 9-2.
    """
    found = None
    for match in _NUMBER.finditer(text):
        number = match[0].replace(",", "")
        if number.startswith("-") and match.start() and text[match.start() - 1].isalnum():
            number = number[1:]
        found = float(number)
    return found


def is_right(response: str, answer: str) -> bool:
    """Whether the last number of a response is that of the answer, to six digits."""
    given, wanted = last_number(response), last_number(answer)
    return given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=1e-6, abs_tol=1e-9)


def parsed_answer(answer: str) -> list[Any]:
    """A right answer as math-verify compares it; nothing where it finds no mathematics in it."""
    if not answer.strip():
        return []
    return _math_verify().parse(answer if "\\boxed" in answer or "$" in answer else f"${answer}$")


def parsed_response(response: str) -> list[Any]:
    """The final answer of a response: in a box, else the last mathematics or number in it."""
    math_verify = _math_verify()
    kinds = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
    return math_verify.parse(response, kinds)


def same_answer(right: list[Any], given: list[Any]) -> bool:
    """Whether math-verify takes a given answer for the right one; the order matters to it."""
    return bool(given) and bool(_math_verify().verify(right, given))


def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError:
        raise ValueError("answers are compared by math-verify; pip install 'fgrpo-plugin[eval]'.") from None
    return math_verify
