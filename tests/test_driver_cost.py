"""The benchmark of the driver's work: its arithmetic, and that what it times is what a step needs."""

import pytest

from benchmarks.driver_cost import exponent, predicted_step


def test_the_predicted_step_is_six_operations_a_parameter_and_token():
    # 1e5 rows of 1e3 tokens: 6 * 7.6e9 * 1e8 = 4.56e18 operations at 64 * 989e12 * 0.4 = 2.532e16 a second.
    assert predicted_step(100_000, 1000) == pytest.approx(180.1, abs=0.1)


def test_the_exponent_of_powers_is_theirs():
    assert exponent({10: 3e-3, 100: 3e-2, 1000: 3e-1}) == pytest.approx(1.0)
    assert exponent({10: 1.0, 100: 100.0, 1000: 10000.0}) == pytest.approx(2.0)
