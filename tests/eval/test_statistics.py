"""pass@k against every draw, votes, ranks and Relative Overall by hand and by scipy."""

import itertools
import random

import numpy as np
import pytest
from scipy.stats import rankdata

from fgrpo_plugin.eval.statistics import majority_at_k, mean_ranks, pass_at_k, relative_overall


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples):
    for right in range(samples + 1):
        marks = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            draws = list(itertools.combinations(marks, k))
            expected = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(right, samples, k) == pytest.approx(expected, abs=1e-12)
        assert pass_at_k(right, samples, 1) == pytest.approx(right / samples)


def test_pass_at_k_of_many_samples_stays_exact():
    assert pass_at_k(1, 4096, 2048) == 0.5 and pass_at_k(0, 4096, 4096) == 0.0 and pass_at_k(4096, 4096, 1) == 1.0


@pytest.mark.parametrize("given", [(0, 4, 0), (0, 4, 5), (5, 4, 1), (-1, 4, 1), (0, 0, 1)])
def test_pass_at_k_refuses_what_is_no_draw(given):
    with pytest.raises(ValueError, match="not 0 <= c <= n and 1 <= k <= n"):
        pass_at_k(*given)


@pytest.mark.parametrize(
    "answers, right, k, expected",
    [
        ([0, 0, 2, 3], {0}, 4, 1.0),
        ([0, 0, 2, 3], {2}, 4, 0.0),
        ([0, 1, 0, 1], {1}, 4, 0.5),  # two answers share the vote
        ([0, 1, 2, 3], {3}, 4, 0.25),
        ([0, 1, 2, 3], {1, 3}, 4, 0.5),
        ([None, None, 2, None], {2}, 4, 1.0),  # who has no answer does not vote
        ([None, None], set(), 2, 0.0),
        ([0, 0, 2, 2], {0}, 2, 0.5),  # two blocks of two
        ([0, 0, 2, 2, 2], {2}, 2, 0.5),  # the fifth is of no block
        ([0, 1, 1], {1}, 1, 2 / 3),  # one that votes: the share of right samples
        ([0], {0}, 1, 1.0),
    ],
)
def test_the_majority_by_hand(answers, right, k, expected):
    assert majority_at_k(answers, right, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 3])
def test_a_vote_needs_its_samples(k):
    with pytest.raises(ValueError, match=f"a vote of {k} of 2 samples"):
        majority_at_k([0, 1], {0}, k)


def test_mean_ranks_by_hand_and_as_scipy_has_them():
    scores = {"base": {"a": 0.1, "b": 0.5}, "x": {"a": 0.4, "b": 0.5}, "y": {"a": 0.4, "b": 0.2}}
    # a: x and y share 1 and 2, base 3; b: base and x share 1 and 2, y 3.
    assert mean_ranks(scores) == {"base": (3 + 1.5) / 2, "x": 1.5, "y": (1.5 + 3) / 2}
    rng = random.Random(0)
    drawn = {m: {s: rng.choice([0.1, 0.2, 0.3]) for s in "abcde"} for m in ("p", "q", "r", "s")}
    table = np.array([[-drawn[m][s] for m in drawn] for s in "abcde"])
    expected = rankdata(table, axis=1, method="average").mean(0)
    assert list(mean_ranks(drawn).values()) == pytest.approx(expected.tolist())


def test_relative_overall_by_hand():
    scores = {"base": {"a": 0.2, "b": 0.5}, "x": {"a": 0.6, "b": 0.4}, "y": {"a": 0.3, "b": 0.9}}
    # a: 0 at 0.2, 100 at 0.6; b: 0 at 0.5, 100 at 0.9.
    found = relative_overall(scores, "base")
    assert found == pytest.approx({"base": 0.0, "x": (100 - 25) / 2, "y": (25 + 100) / 2})
    # A set on which no model beats the base has no scale.
    scores["base"]["b"] = 0.9
    assert relative_overall(scores, "base") == pytest.approx({"base": 0.0, "x": 100.0, "y": 25.0})
    scores["base"]["a"] = 0.6
    assert relative_overall(scores, "base") == {"base": None, "x": None, "y": None}
    with pytest.raises(ValueError, match="the base z is none of the models base, x, y"):
        relative_overall(scores, "z")


def test_equal_shares_of_right_samples_are_a_tie_however_they_are_added():
    one, other = ([pass_at_k(right, 10, 1) for right in of] for of in ([1] * 10, [10] + [0] * 9))
    means = sum(one) / 10, sum(other) / 10
    assert means[0] != means[1]  # in the last digit
    for low, high in (means, means[::-1]):
        scores = {"base": {"a": low}, "x": {"a": high}}
        assert mean_ranks(scores) == {"base": 1.5, "x": 1.5}
        assert relative_overall(scores, "base") == {"base": None, "x": None}
    scores = {"base": {"a": 0.1}, "x": {"a": 0.1 + 1e-9}}  # less than a sample of any set there is
    assert mean_ranks(scores) == {"base": 2.0, "x": 1.0} and relative_overall(scores, "base")["x"] == 100.0


@pytest.mark.parametrize("scores", [{}, {"x": {}}, {"x": {"a": 1.0}, "y": {"b": 1.0}}])
def test_ranks_need_the_same_sets(scores):
    with pytest.raises(ValueError, match="at least one set, and the same sets of every model"):
        mean_ranks(scores)
