"""How far apart two kinds of prompts lie in a model's hidden states: the Bhattacharyya distance, with its chance level.

A hidden state has more dimensions than there are prompts, so that a covariance of it is singular. The states of all
prompts together are projected on their first principal directions and scaled to variance 1 along each. Labels take no
part in that, so a relabelling of the prompts leaves the projection as it is, and the chance level is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AT_ONCE = 500
"""Resamples that are computed together; bounds the memory."""
LEAST = 10
"""Prompts of a kind without which nothing is computed: a resample of fewer is often one prompt several times."""
RESOLUTION = float(np.finfo(np.float32).eps)
"""Of the states as they are kept: variation below it, relative to their size, is rounding."""
SINGULAR = 1e-12
"""Least squared pivot of a covariance, relative to its largest, at which it is inverted."""


@dataclass(frozen=True)
class Estimation:
    """How a distance is estimated.

    Attributes:
        directions: k of `projected`.
        shrinkage: a of `shrunk`.
        resamples: of the bootstrap, and as many relabellings.
        seed: of both; the same seed draws the same ones for every layer and model with these numbers of prompts.
    """

    directions: int = 8
    shrinkage: float = 0.05
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("directions", 1), ("resamples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be {least} or more.")
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage={self.shrinkage} must lie between 0 and 1.")

    @property
    def least_prompts(self) -> int:
        """Prompts of each kind that so many directions need."""
        return max(2 * self.directions, LEAST)


def bhattacharyya(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> Array:
    """The distance of two Gaussians in nats: 1/8 d' S^-1 d + 1/2 log(det S / sqrt(det S1 det S2)).

    d = mean1 - mean2 and S = (S1 + S2) / 2 (Bhattacharyya 1943; Kailath 1967, equation 58).

    Args:
        mean1: shape (..., k).
        cov1: shape (..., k, k), symmetric.
        mean2: shape (..., k).
        cov2: shape (..., k, k), symmetric.

    Returns:
        Shape (...); 0 for equal Gaussians.

    Raises:
        ValueError: a covariance is singular.
    """
    middle = _cholesky((cov1 + cov2) / 2)
    way = np.linalg.solve(middle, (mean1 - mean2)[..., None])[..., 0]
    shape = _log_det(middle) - (_log_det(_cholesky(cov1)) + _log_det(_cholesky(cov2))) / 2
    return np.asarray((way**2).sum(-1) / 8 + shape / 2)


def _cholesky(cov: Array) -> Array:
    try:
        root: Array = np.asarray(np.linalg.cholesky(cov), dtype=np.float64)
    except np.linalg.LinAlgError:
        root = np.zeros_like(cov)
    pivots = np.diagonal(root, axis1=-2, axis2=-1) ** 2
    if bool((pivots.min(-1) <= SINGULAR * pivots.max(-1)).any()):
        raise ValueError("a covariance is singular; raise the shrinkage, lower the directions, or take more prompts.")
    return root


def _log_det(root: Array) -> Array:
    return np.asarray(2 * np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1))


def shrunk(cov: Array, shrinkage: float) -> Array:
    """(1 - a) S + a tr(S)/k I: towards a ball of the same total variance (Ledoit and Wolf 2004, with a given a).

    Args:
        cov: S, shape (..., k, k).
        shrinkage: a, from 0 (S as it is) to 1 (the ball).
    """
    size = cov.shape[-1]
    mean = np.trace(cov, axis1=-2, axis2=-1)[..., None, None] / size
    return np.asarray((1 - shrinkage) * cov + shrinkage * mean * np.eye(size))


@dataclass(frozen=True)
class Projection:
    """States on their first principal directions.

    Attributes:
        points: shape (prompts, directions): mean 0 and variance 1 over all prompts along each direction, without
            correlation. Fewer directions than asked for where the states vary in fewer.
        share: of the states' total variance that the directions hold, 0 to 1; 0 where nothing varies.
    """

    points: Array
    share: float


def projected(states: NDArray[np.floating], directions: int) -> Projection:
    """Principal components of the centred states of all prompts, whatever their kind, each scaled to variance 1.

    Args:
        states: of one layer, shape (prompts, dimensions).
        directions: k, how many components.
    """
    given = np.asarray(states, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(given - given.mean(0), full_matrices=False)
    real = sizes > RESOLUTION * np.linalg.norm(given)
    kept = int(min(directions, real.sum()))
    total = float((sizes[real] ** 2).sum())
    return Projection(left[:, :kept] * np.sqrt(len(given)), float((sizes[:kept] ** 2).sum()) / total if kept else 0.0)


def distances(points: Array, first: NDArray, second: NDArray, shrinkage: float) -> Array:
    """The distance of two groups of points for many ways of grouping them.

    Args:
        points: shape (prompts, k).
        first: how often each prompt counts in the first group, shape (ways, prompts).
        second: in the second group.
        shrinkage: of both covariances, whose denominator is the group's count - 1.

    Returns:
        Shape (ways,), in nats.

    Raises:
        ValueError: a covariance is singular.
    """
    squares = points[:, :, None] * points[:, None, :]
    return bhattacharyya(*_moments(points, squares, first, shrinkage), *_moments(points, squares, second, shrinkage))


def _moments(points: Array, squares: Array, counts: NDArray, shrinkage: float) -> tuple[Array, Array]:
    number = counts.sum(1, dtype=np.float64)[:, None]
    mean = counts @ points / number
    scatter = np.tensordot(counts, squares, 1) - number[..., None] * mean[:, :, None] * mean[:, None, :]
    return mean, shrunk(scatter / (number[..., None] - 1), shrinkage)


@dataclass(frozen=True)
class Separation:
    """How far apart two kinds of prompts lie in one layer; distances in nats.

    Attributes:
        distance: of the prompts as they are.
        low: lower end of the 95 % interval over prompts.
        high: upper end.
        chance: mean distance when the prompts are relabelled at random.
        chance_high: its 95 % quantile: 5 % of relabellings have a larger distance.
        directions: how many the states vary in, at most those asked for; with none every distance is 0.
        share: of the states' variance that the directions hold.
    """

    distance: float
    low: float
    high: float
    chance: float
    chance_high: float
    directions: int
    share: float


def separation(safe: NDArray[np.floating], harmful: NDArray[np.floating], how: Estimation) -> Separation:
    """The distance between the states of two kinds of prompts in one layer, its interval and its chance level.

    The interval is that of a bootstrap over the prompts of each kind, on the directions of all prompts: the percentiles
    of the resampled distances, moved by the difference between the distance and their mean. A resample holds prompts
    twice, which makes its covariances too small and its distance too large; unmoved, the interval would often lie above
    the distance that it belongs to.

    Args:
        safe: shape (prompts, dimensions).
        harmful: shape (prompts, dimensions).
        how: settings.

    Raises:
        ValueError: fewer prompts of a kind than `how.least_prompts`, or a singular covariance.
    """
    counts = (len(safe), len(harmful))
    if min(counts) < how.least_prompts:
        raise ValueError(f"{min(counts)} prompts of a kind; {how.directions} directions need {how.least_prompts}.")
    found = projected(np.concatenate([safe, harmful]), how.directions)
    is_safe = np.arange(sum(counts)) < counts[0]
    if not found.points.shape[1]:
        return Separation(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0)
    distance = float(distances(found.points, is_safe[None], ~is_safe[None], how.shrinkage)[0])
    rng = np.random.default_rng(how.seed)

    def relabelled(ways: int) -> tuple[NDArray, NDArray]:
        first = rng.permuted(np.tile(is_safe, (ways, 1)), axis=1)
        return first, ~first

    def resampled(ways: int) -> tuple[NDArray, NDArray]:
        first = rng.multinomial(counts[0], is_safe / counts[0], size=ways)
        return first, rng.multinomial(counts[1], ~is_safe / counts[1], size=ways)

    def draws(draw: Callable[[int], tuple[NDArray, NDArray]]) -> Array:
        parts = [min(AT_ONCE, how.resamples - start) for start in range(0, how.resamples, AT_ONCE)]
        return np.concatenate([distances(found.points, *draw(ways), how.shrinkage) for ways in parts])

    chance, spread = draws(relabelled), draws(resampled)
    low, high = np.quantile(spread, (0.025, 0.975)) + distance - spread.mean()
    return Separation(
        distance,
        max(float(low), 0.0),
        float(high),
        float(chance.mean()),
        float(np.quantile(chance, 0.95)),
        found.points.shape[1],
        found.share,
    )
