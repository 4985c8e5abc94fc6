"""The last number anywhere in a response, compared as a number; answers as math-verify compares them."""

import sys
import time

import pytest

from fgrpo_plugin.eval.scoring import TookTooLong, is_right, last_number, parsed_answer, parsed_response, same_answer


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
        ("1,2,3", 3.0),  # a list
        ("3,5", 5.0),
        ("12,345,6", 6.0),
        ("1,234,567.5 in all", 1234567.5),
        ("\N{MINUS SIGN}5 degrees", -5.0),
        ("-$5", -5.0),
        ("(3)-5", 5.0),
        ("12 birds - 8 birds", 8.0),
        ("7/2", 2.0),
        ("1e-5 m", 1e-5),
        ("2E3", 2000.0),
        ("3 and " + "9" * 400, 3.0),  # no number of a computer
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
        ("120000", "120001", False),
        ("0.001", "0.001001", False),
        ("0", "0.0000000001", True),
        ("0", "0.00001", False),
        ("9" * 400, "8" * 400, False),
        ("0", "0", True),
    ],
)
def test_right_is_the_same_number_to_six_digits(response, answer, right):
    assert is_right(response, answer) is right


@pytest.mark.parametrize(
    "answer, response, right",
    [
        ("18", "so 9 + 9 = 18 dollars", True),
        ("18", "#### 18", True),
        ("18", r"\boxed{18}, which is twice 9", True),  # a box counts before what follows it
        ("18", r"\boxed{9}. Or 18", False),
        ("145.0", "145", True),
        ("145.0", r"\boxed{145.5}", False),
        ("1,234", r"\boxed{1234}", True),
        (r"\$18.90", r"\boxed{18.9}", True),
        (r"\$32,\!348", r"\boxed{\$32,348}", True),
        (r"\$36", r"\boxed{\$35}", False),
        ("$18.90", r"\boxed{18.9}", True),
        (r"$\frac{1}{2}$", r"\boxed{0.5}", True),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac{\pi}{2}", r"$\dfrac{\pi}{2}$", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(\pi/2, 3)}", False),
        (r"so \boxed{x+1}", r"\boxed{1+x}", True),
        (r"p - q", r"\boxed{q - p}", False),
        ("18", "no idea", False),
        ("18", "", False),
    ],
)
def test_answers_are_compared_as_mathematics(answer, response, right):
    assert same_answer(parsed_answer(answer), parsed_response(response)) is right


@pytest.mark.parametrize("answer", ["", "  "])
def test_nothing_is_no_answer(answer):
    assert parsed_answer(answer) == []
    assert not same_answer([], parsed_response("1")) and not same_answer(parsed_answer("1"), [])


def test_what_takes_too_long_is_said_and_what_cannot_be_read_is_no_answer(monkeypatch):
    import math_verify

    from fgrpo_plugin.eval import scoring

    assert scoring.SECONDS == 30
    monkeypatch.setattr(scoring, "SECONDS", 1)

    def sleep(*words, **named):
        time.sleep(3)

    monkeypatch.setattr(math_verify.parser, "extract_target_from_pred", sleep)
    with pytest.raises(TookTooLong, match=r"took longer than 1 s for '\$12\$'"):
        parsed_answer("12")

    def broken(*words, **named):
        raise RuntimeError("of a grammar")

    monkeypatch.setattr(math_verify.parser, "extract_target_from_pred", broken)
    assert parsed_response("12") == []


def test_without_math_verify_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"pip install 'fgrpo-plugin\[eval\]'"):
        parsed_answer("1")
