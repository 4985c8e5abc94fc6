"""Whether a response gives the right answer."""

import math
import re

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
