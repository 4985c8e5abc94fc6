"""Intervals against a loop and the normal approximation; differences are paired."""

import math
import random

import numpy as np
import pytest

from fgrpo_plugin.intervals import Measure, bootstrap, share_interval


def test_the_interval_is_that_of_resampled_means():
    values = [0.0, 0.25, 1.0, 1.0, 0.5, 0.0, 0.75]
    low, high = bootstrap(values, seed=3)
    rng = random.Random(1)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(20_000))
    assert low == pytest.approx(means[int(0.025 * len(means))], abs=0.03)
    assert high == pytest.approx(means[int(0.975 * len(means))], abs=0.03)


def test_of_many_values_it_is_the_normal_approximation():
    values = np.random.default_rng(0).integers(0, 2, 2000)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert bootstrap(values) == pytest.approx((values.mean() - error, values.mean() + error), abs=2e-3)


def test_the_quantiles_are_those_of_95_percent():
    # Close enough to tell 2.5 % from 3 %, whose quantile lies 0.08 standard errors further in.
    values = np.random.default_rng(0).normal(size=400)
    error = values.std() / 20
    low, high = bootstrap(values, resamples=50_000)
    assert ((low - values.mean()) / error, (high - values.mean()) / error) == pytest.approx((-1.96, 1.96), abs=0.035)
    assert bootstrap(values) == bootstrap(values, seed=0) != bootstrap(values, seed=1)


def test_it_is_of_one_point_where_every_value_is_the_same_and_needs_a_value():
    assert bootstrap([0.5] * 10) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])


def test_a_difference_is_paired():
    own, base = Measure.of([1.0, 0.5, 1.0]), Measure.of([1.0, 0.0, 0.25])
    less = own.minus(base)
    assert less.values == (0.0, 0.5, 0.75) and less == Measure.of([0.0, 0.5, 0.75])
    assert less.mean == pytest.approx(1.25 / 3) and (less.low, less.high) == bootstrap([0.0, 0.5, 0.75])
    assert str(own).startswith("0.833 [0.500, 1.000]") and less.signed() == "+0.417 [+0.000, +0.750]"
    with pytest.raises(ValueError):
        own.minus(Measure.of([1.0]))


@pytest.mark.parametrize("count, of", [(0, 1), (1, 1), (0, 30), (30, 30), (1, 5), (4, 5), (55, 80), (7000, 10_000)])
def test_the_interval_of_a_share_ends_where_a_tail_is_2_5_percent(count, of):
    def tail(share, numbers):
        logs = (math.log(math.comb(of, k)) + k * math.log(share) + (of - k) * math.log(1 - share) for k in numbers)
        return math.fsum(map(math.exp, logs))

    low, high = share_interval(count, of)
    near = range(max(0, count - 400), min(of, count + 400) + 1)  # what is further away has no probability
    assert low == 0 if count == 0 else tail(low, near[near.index(count) :]) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if count == of else tail(high, near[: near.index(count) + 1]) == pytest.approx(0.025, rel=1e-6)


def test_a_share_is_a_measure_with_its_exact_interval():
    found = Measure.of_share([1.0, 0.0, 1.0, 1.0])
    assert (found.mean, found.low, found.high) == (0.75, *share_interval(3, 4)) and found.values == (1.0, 0.0, 1.0, 1.0)
    assert (found.low, found.high) == pytest.approx((0.19412, 0.99369), abs=1e-5)  # as tables have it
    with pytest.raises(ValueError, match="at least one value"):
        Measure.of_share([])
