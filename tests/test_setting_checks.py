"""What counts as a number, and in which words a value is refused."""

import math

import pytest

from fgrpo_plugin.setting_checks import is_number, require_one_of, require_positive


@pytest.mark.parametrize("value", [0, -1, 2.5, 10**9])
def test_numbers_are_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "1", None, [1]])
def test_what_is_no_number_is_none(value):
    assert not is_number(value)


@pytest.mark.parametrize("value", [0, -0.1, True, "1", None, math.nan, math.inf])
def test_what_is_not_positive_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"^beta=.* must be a number > 0\.$"):
        require_positive("beta", value)


def test_a_positive_number_and_a_known_name_pass():
    require_positive("beta", 1e-300)
    require_one_of("level", "token", ("sequence", "token"))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^level='row' is not known; choose one of sequence, token\.$"):
        require_one_of("level", "row", ("sequence", "token"))
