"""Means of values of the same kind (problems, pairs, prompts), with bootstrap intervals; shares with exact ones."""

import math
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


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934): the shares that neither tail of 2.5 % refuses.

    Of few draws, or of draws that are all the same, a bootstrap's has next to no width, whatever their number.

    Args:
        count: how many of the draws are.
        of: draws, at least one.
    """
    numbers = np.arange(of + 1)
    ways = math.lgamma(of + 1) - np.array([math.lgamma(k + 1) + math.lgamma(of - k + 1) for k in range(of + 1)])

    def share(first: int, last: int, rises: bool) -> float:
        """Return where the probability of so many draws, from first to last, is 2.5 %."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            log_probability = ways + numbers * math.log(middle) + (of - numbers) * math.log1p(-middle)
            above = float(np.exp(log_probability[first : last + 1]).sum()) > 0.025
            low, high = (low, middle) if above == rises else (middle, high)
        return (low + high) / 2

    return share(count, of, True) if count else 0.0, share(0, count, False) if count < of else 1.0


@dataclass(frozen=True)
class Measure:
    """A mean with its 95 % interval (bootstrap over the values, or exact for a share), and the values, (n,)."""

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

    @classmethod
    def of_share(cls, values: Sequence[float]) -> "Measure":
        """The share of ones among values, (n,), each of them 0 or 1, with its exact interval.

        Raises:
            ValueError: no values.
        """
        if not len(values):
            raise ValueError("an interval needs at least one value.")
        return cls(statistics.fmean(values), *share_interval(round(sum(values)), len(values)), tuple(values))

    def minus(self, other: "Measure") -> "Measure":
        """The paired difference: the same places of both are drawn.

        Raises:
            ValueError: not as many values as the other.
        """
        return Measure.of([mine - theirs for mine, theirs in zip(self.values, other.values, strict=True)])

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """Write as a difference."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
