"""Bootstrap intervals against a loop and against the normal approximation."""

import random

import numpy as np
import pytest

from fgrpo_plugin.eval.statistics import bootstrap


def test_the_interval_is_that_of_resampled_means():
    values = [0.0, 0.25, 1.0, 1.0, 0.5, 0.0, 0.75]
    low, high = bootstrap(values, seed=3)
    rng = random.Random(1)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(20_000))
    assert low == pytest.approx(means[int(0.025 * len(means))], abs=0.03)
    assert high == pytest.approx(means[int(0.975 * len(means))], abs=0.03)


def test_of_many_problems_it_is_the_normal_approximation():
    values = np.random.default_rng(0).integers(0, 2, 2000)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert bootstrap(values) == pytest.approx((values.mean() - error, values.mean() + error), abs=2e-3)


def test_it_is_of_one_point_where_every_problem_is_the_same_and_needs_a_problem():
    assert bootstrap([0.5] * 10) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap([])
