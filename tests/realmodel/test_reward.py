"""The reward is right or not, and nothing for the form."""

import pytest

from fgrpo_plugin.realmodel.reward import compute_score


@pytest.mark.parametrize(
    "response, score, parsable", [("It is 4.", 1.0, 1.0), ("5", 0.0, 1.0), ("four", 0.0, 0.0), ("4 of 5", 0.0, 1.0)]
)
def test_the_last_number_decides(response, score, parsable):
    found = compute_score("word_problems", response, "4", extra_info={"index": "0"}, another="setting")
    assert found == {"score": score, "acc": score, "parsable": parsable}
