"""The last number anywhere in a response, compared as a number."""

import pytest

from fgrpo_plugin.eval.scoring import is_right, last_number


@pytest.mark.parametrize(
    "text, number",
    [
        ("", None),
        ("none at all", None),
        ("7", 7.0),
        ("7 pens, so 8", 8.0),
        ("She has 1,234 pens.", 1234.0),
        ("It costs $3.50.", 3.5),
        ("about .5 of it", 0.5),
        ("It is -3 degrees", -3.0),
        ("9-2", 2.0),
        ("9 - 2 = 7", 7.0),
        ("x-5", 5.0),
        ("50% of them", 50.0),
        ("first 3, then 4,", 4.0),
        ("1,2,3", 123.0),  # a comma inside a number is dropped, as in 1,234
        ("-", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    "response, answer, right",
    [
        ("The answer is 12.", "12", True),
        ("12.0", "12", True),
        ("12 of 13", "12", False),
        ("no number", "12", False),
        ("12", "no number", False),
        ("0.333333", "0.3333333", True),
        ("1200000", "1200001", True),  # six digits agree
        ("0", "0", True),
    ],
)
def test_right_is_the_same_number_to_six_digits(response, answer, right):
    assert is_right(response, answer) is right
