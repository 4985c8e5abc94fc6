"""Whether a response gives the right answer."""

import math
import re
from typing import Any

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+")
_MINUS = re.compile(r"(?<![\w)])[-\N{MINUS SIGN}][$€£]?$")


def last_number(text: str) -> float | None:
    """Return the last number anywhere in a text; None where there is none.

    Commas between thousands are dropped. A minus sign counts, before a sign of currency too, unless a digit, letter or
    bracket stands before it, as in 9-2. Of a fraction the last number is its denominator.
    """
    found = None
    for match in _NUMBER.finditer(text):
        value = float(match[0].replace(",", ""))
        if math.isfinite(value):
            found = -value if _MINUS.search(text[max(0, match.start() - 3) : match.start()]) else value
    return found


def is_right(response: str, answer: str) -> bool:
    """Return whether the last number of a response is that of the answer, to six digits."""
    given, wanted = last_number(response), last_number(answer)
    return given is not None and wanted is not None and math.isclose(given, wanted, rel_tol=1e-6, abs_tol=1e-9)


SECONDS = 30
"""That math-verify has for one answer; its own 5 are too few for the simplest one where a machine is busy."""


class TookTooLong(ValueError):
    """math-verify did not end in time; nothing is known of the answer."""


def parsed_answer(answer: str) -> list[Any]:
    """A right answer as math-verify compares it; nothing where it finds no mathematics in it.

    Raises:
        TookTooLong: see there.
    """
    if not answer.strip():
        return []
    written = "\\boxed" in answer or re.search(r"(?<!\\)\$", answer)  # an escaped sign is a currency's
    return _in_time("parse", answer if written else f"${answer}$")


def parsed_response(response: str) -> list[Any]:
    """The final answer of a response: in a box, else the last mathematics or number in it.

    Raises:
        TookTooLong: see there.
    """
    math_verify = _math_verify()
    kinds = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
    return _in_time("parse", response, kinds)


def same_answer(right: list[Any], given: list[Any]) -> bool:
    """Return whether math-verify takes a given answer for the right one; the order matters to it.

    Raises:
        TookTooLong: see there.
    """
    return bool(given) and bool(_in_time("verify", right, given))


def _in_time(function: str, *words: Any) -> Any:
    """A call of math-verify; what it cannot read is no answer, and what it has no time for is an error."""
    math_verify = _math_verify()
    limit = {"parse": "parsing_timeout", "verify": "timeout_seconds"}[function]
    try:
        return getattr(math_verify, function)(*words, **{limit: SECONDS}, raise_on_error=True)
    except math_verify.errors.TimeoutException:
        raise TookTooLong(f"math-verify took longer than {SECONDS} s for {str(words[0])[:60]!r}") from None
    except Exception:  # of whatever kind: of sympy, of the grammar
        return []


def _math_verify() -> Any:
    try:
        import math_verify
        import math_verify.errors
    except ImportError:
        raise ValueError("answers are compared by math-verify; pip install 'fgrpo-plugin[eval]'.") from None
    return math_verify
