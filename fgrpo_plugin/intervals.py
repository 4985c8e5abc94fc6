"""Means of values of the same kind (problems, pairs, prompts), with bootstrap intervals."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of a mean.

    Args:
        values: (n,) one for each of what is drawn anew, such as a problem (the share of its responses that are right),
            a prompt or a pair; for two models on the same problems the differences, which makes the bootstrap a
            paired one.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value.")
    given = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.array([given[rng.integers(0, len(given), len(given))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class Measure:
    """A mean with its 95 % interval (bootstrap over the values), and the values, (n,)."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Measure":
        """The mean of values, (n,).

        Raises:
            ValueError: no values.
        """
        return cls(statistics.fmean(values), *bootstrap(values), tuple(values))

    def minus(self, other: "Measure") -> "Measure":
        """The paired difference: the same places of both are drawn.

        Raises:
            ValueError: not as many values as the other.
        """
        return Measure.of([mine - theirs for mine, theirs in zip(self.values, other.values, strict=True)])

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """As a difference."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
