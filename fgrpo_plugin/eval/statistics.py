"""Intervals over problems."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over problems.

    Args:
        values: one a problem, shape (problems,): the share of its responses that are right, or for two models on the
            same problems the difference of those shares, which makes the bootstrap a paired one.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: no problems.
    """
    if not len(values):
        raise ValueError("an interval needs at least one problem.")
    given = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(given), (resamples, len(given)))
    low, high = np.quantile(given[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)
