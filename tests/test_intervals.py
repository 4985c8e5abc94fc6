"""Intervals against a loop and the normal approximation; differences are paired."""

import random

import numpy as np
import pytest

from fgrpo_plugin.intervals import Measure, bootstrap


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
