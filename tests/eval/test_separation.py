"""The distance against its integral, closed forms and loops; its projection, its chance level and its interval."""

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.linalg import sqrtm
from scipy.spatial.distance import mahalanobis

from fgrpo_plugin.eval.separation import (
    Estimation,
    bhattacharyya,
    distances,
    projected,
    separation,
    shrunk,
)

MEAN1, MEAN2 = np.array([1.0, -0.5, 0.2]), np.array([0.0, 0.4, -1.0])
COV1 = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]])
COV2 = np.array([[0.7, -0.1, 0.0], [-0.1, 1.5, 0.4], [0.0, 0.4, 2.5]])
HOW = Estimation(directions=3, shrinkage=0.1, resamples=400)


def by_hand(x, y, shrinkage):
    """With numpy's covariances, inverse and determinants, entry by entry."""
    covs = []
    for one in (x, y):
        cov, size = np.cov(one, rowvar=False), one.shape[1]
        mean = sum(cov[i, i] for i in range(size)) / size
        for i in range(size):
            for j in range(size):
                cov[i, j] = (1 - shrinkage) * cov[i, j] + (shrinkage * mean if i == j else 0.0)
        covs.append(cov)
    middle, way = sum(covs) / 2, x.mean(0) - y.mean(0)
    ratio = np.linalg.det(middle) / np.sqrt(np.linalg.det(covs[0]) * np.linalg.det(covs[1]))
    return way @ np.linalg.inv(middle) @ way / 8 + np.log(ratio) / 2


def two_kinds(count=40, dimensions=12, shift=2.0, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.linspace(3, 0.5, dimensions)
    safe, harmful = rng.normal(size=(2, count, dimensions)) * scales
    harmful[:, 0] += shift * scales[0]
    return safe, 1.2 * harmful[: count - 7]


def test_it_is_minus_the_logarithm_of_the_overlap():
    """Its definition: -log of the integral of sqrt(p q)."""
    overlap, _ = integrate.quad(lambda x: np.sqrt(stats.norm.pdf(x, 0.3, 1.2) * stats.norm.pdf(x, -1.0, 0.5)), -20, 20)
    one = [np.array([0.3]), np.array([[1.44]]), np.array([-1.0]), np.array([[0.25]])]
    assert bhattacharyya(*one) == pytest.approx(-np.log(overlap), rel=1e-8)
    p, q = stats.multivariate_normal(MEAN1[:2], COV1[:2, :2]), stats.multivariate_normal(MEAN2[:2], COV2[:2, :2])
    grid = np.stack(np.meshgrid(*[np.linspace(-12, 12, 601)] * 2), -1)
    overlap = np.sqrt(p.pdf(grid) * q.pdf(grid)).sum() * (24 / 600) ** 2
    two = [MEAN1[:2], COV1[:2, :2], MEAN2[:2], COV2[:2, :2]]
    assert bhattacharyya(*two) == pytest.approx(-np.log(overlap), rel=1e-6)


def test_closed_forms():
    squared = mahalanobis(MEAN1, MEAN2, np.linalg.inv(COV1)) ** 2
    assert bhattacharyya(MEAN1, COV1, MEAN2, COV1) == pytest.approx(squared / 8)
    ratio = np.linalg.det((COV1 + COV2) / 2) / np.sqrt(np.linalg.det(COV1) * np.linalg.det(COV2))
    assert bhattacharyya(MEAN1, COV1, MEAN1, COV2) == pytest.approx(np.log(ratio) / 2)
    m, n, v, w = 0.3, -1.0, 1.44, 0.25
    expected = (m - n) ** 2 / (4 * (v + w)) + np.log((v / w + w / v + 2) / 4) / 4
    assert bhattacharyya(*map(np.array, ([m], [[v]], [n], [[w]]))) == pytest.approx(expected)
    assert bhattacharyya(MEAN1, COV1, MEAN1, COV1) == pytest.approx(0.0, abs=1e-14)


def test_it_is_symmetric_and_the_same_in_other_coordinates():
    expected = bhattacharyya(MEAN1, COV1, MEAN2, COV2)
    assert bhattacharyya(MEAN2, COV2, MEAN1, COV1) == pytest.approx(expected)
    turn = stats.special_ortho_group.rvs(3, random_state=1)
    for other in (turn, turn @ np.diag([1.0, 3.0, 0.2]) + 0.1):
        moved = [other @ MEAN1, other @ COV1 @ other.T, other @ MEAN2, other @ COV2 @ other.T]
        assert bhattacharyya(*moved) == pytest.approx(expected)


def test_several_at_once():
    means, covs = np.stack([MEAN1, MEAN2]), np.stack([COV1, COV2])
    found = bhattacharyya(means, covs, means[::-1], covs[::-1])
    assert found == pytest.approx(np.full(2, bhattacharyya(MEAN1, COV1, MEAN2, COV2)))


@pytest.mark.parametrize("cov", [np.diag([1.0, 0.0]), np.zeros((2, 2)), np.full((2, 2), 1.0), np.diag([1.0, 1e-13])])
def test_a_singular_covariance_is_refused(cov):
    with pytest.raises(ValueError, match="a covariance is singular; raise the shrinkage, lower the directions"):
        bhattacharyya(np.zeros(2), cov, np.zeros(2), np.eye(2))
    bhattacharyya(np.zeros(2), np.diag([1.0, 1e-11]), np.zeros(2), np.eye(2))
    bhattacharyya(np.zeros(2), 1e-7 * np.eye(2), np.zeros(2), np.eye(2))  # small in every direction
    with pytest.raises(ValueError, match="a covariance is singular"):
        bhattacharyya(np.zeros((2, 2)), np.stack([np.eye(2), np.diag([1.0, 1e-13])]), np.zeros((2, 2)), np.eye(2))


def test_shrinkage_keeps_the_total_variance():
    assert np.array_equal(shrunk(COV1, 0.0), COV1)
    assert shrunk(COV1, 1.0) == pytest.approx(3.5 / 3 * np.eye(3))
    assert shrunk(np.array([[2.0]]), 0.3) == pytest.approx(np.array([[2.0]]))
    for part in (0.1, 0.5):
        assert np.trace(shrunk(COV1, part)) == pytest.approx(3.5)
        assert shrunk(COV1, part)[0, 1] == pytest.approx((1 - part) * 0.3)
        assert shrunk(np.stack([COV2, COV1]), part)[1] == pytest.approx(shrunk(COV1, part))


def test_the_projection_is_that_of_the_covariance_without_labels():
    states = np.random.default_rng(0).normal(size=(50, 8)) * np.linspace(4, 1, 8) + 100
    found = projected(states, 3)
    values, vectors = np.linalg.eigh(np.cov(states, rowvar=False, bias=True))
    expected = (states - states.mean(0)) @ vectors[:, ::-1][:, :3] / np.sqrt(values[::-1][:3])
    assert np.abs(found.points) == pytest.approx(np.abs(expected))
    assert found.points.T @ found.points / 50 == pytest.approx(np.eye(3), abs=1e-12)
    assert found.share == pytest.approx(values[::-1][:3].sum() / values.sum())
    assert projected(states, 20).points.shape == (50, 8) and projected(states, 20).share == pytest.approx(1.0)


def test_states_that_do_not_vary_have_no_directions():
    one = np.random.default_rng(0).normal(size=6).astype(np.float32)
    assert projected(np.tile(one, (30, 1)), 4).points.shape == (30, 0)
    assert projected(np.zeros((30, 6)), 4).share == 0.0
    rounding = np.tile(one, (30, 1)) * (1 + 1e-8 * np.random.default_rng(1).normal(size=(30, 6)))
    assert projected(rounding, 4).points.shape == (30, 0)
    line = np.tile(one, (30, 1)) * np.linspace(1, 2, 30)[:, None]
    assert projected(line, 4).points.shape == (30, 1) and projected(line, 4).share == 1.0
    found = separation(np.tile(one, (20, 1)), np.tile(one, (20, 1)), HOW)
    assert (found.distance, found.low, found.high, found.chance, found.chance_high) == (0,) * 5
    assert (found.directions, found.share) == (0, 0)


@pytest.mark.parametrize("shrinkage", [0.0, 0.05, 1.0])
def test_many_ways_at_once_are_those_of_a_loop(shrinkage):
    points = np.random.default_rng(0).normal(size=(30, 3))
    first = np.random.default_rng(1).integers(0, 3, (5, 30))
    second = np.random.default_rng(2).integers(0, 3, (5, 30))
    expected = [
        by_hand(np.repeat(points, one, axis=0), np.repeat(points, other, axis=0), shrinkage)
        for one, other in zip(first, second, strict=True)
    ]
    assert distances(points, first, second, shrinkage) == pytest.approx(expected)


def test_many_samples_have_the_distance_of_their_gaussians():
    rng, expected = np.random.default_rng(0), float(bhattacharyya(MEAN1, COV1, MEAN2, COV2))
    errors = []
    for count in (500, 50_000):
        safe = MEAN1 + rng.normal(size=(count, 3)) @ sqrtm(COV1)
        harmful = MEAN2 + rng.normal(size=(count, 3)) @ sqrtm(COV2)
        is_safe = np.arange(2 * count) < count
        points = projected(np.concatenate([safe, harmful]), 3).points
        errors.append(abs(float(distances(points, is_safe[None], ~is_safe[None], 0.0)[0]) / expected - 1))
    assert errors[1] < 0.02 and errors[1] < errors[0]


def test_the_distance_is_that_of_the_projected_prompts():
    safe, harmful = two_kinds()
    found = separation(safe, harmful, HOW)
    every = projected(np.concatenate([safe, harmful]), 3)
    assert found.distance == pytest.approx(by_hand(every.points[:40], every.points[40:], 0.1))
    assert (found.directions, found.share) == (3, every.share)
    turned = stats.special_ortho_group.rvs(12, random_state=0)
    moved = separation(5 * safe @ turned + 7, 5 * harmful @ turned + 7, HOW)
    assert [moved.distance, moved.low, moved.chance] == pytest.approx([found.distance, found.low, found.chance])
    other = separation(harmful, safe, HOW)
    assert other.distance == pytest.approx(found.distance)


def test_two_directions_without_shrinkage_are_the_computation_of_the_authors_earlier_paper():
    """Principal components of all states as they are, not scaled, and numpy's covariances."""
    safe, harmful = two_kinds()
    every = np.concatenate([safe, harmful])
    _, _, axes = np.linalg.svd(every - every.mean(0))
    x, y = (safe - every.mean(0)) @ axes[:2].T, (harmful - every.mean(0)) @ axes[:2].T
    found = separation(safe, harmful, Estimation(directions=2, shrinkage=0.0, resamples=10))
    assert found.distance == pytest.approx(by_hand(x, y, 0.0))


def test_the_chance_level_is_that_of_relabelled_prompts():
    safe, harmful = two_kinds()
    found = separation(safe, harmful, Estimation(directions=3, shrinkage=0.1, resamples=4000))
    every, rng, expected = np.concatenate([safe, harmful]), random.Random(5), []
    for _ in range(4000):
        order = rng.sample(range(len(every)), len(every))
        one, other = every[order[:40]], every[order[40:]]
        points = projected(np.concatenate([one, other]), 3).points  # anew: labels take no part in it
        expected.append(by_hand(points[:40], points[40:], 0.1))
    assert found.chance == pytest.approx(np.mean(expected), rel=0.03)
    assert found.chance_high == pytest.approx(np.quantile(expected, 0.95), rel=0.04)
    assert 0 < found.chance < found.chance_high < found.low <= found.distance


def test_prompts_of_one_kind_are_at_the_chance_level():
    """The distance of 60 equal prompts is far from 0, which is why the chance level stands beside it."""
    rng = np.random.default_rng(0)
    found = [
        separation(*rng.normal(size=(2, 60, 20)), Estimation(directions=8, shrinkage=0.0, resamples=200))
        for _ in range(60)
    ]
    assert np.mean([one.distance for one in found]) == pytest.approx(np.mean([one.chance for one in found]), rel=0.05)
    large = separation(*rng.normal(size=(2, 600, 20)), Estimation(directions=8, shrinkage=0.0, resamples=2000))
    assert large.chance == pytest.approx(8 / (4 * 600) + 8 * 9 / (8 * 600), rel=0.05)  # as docs/separation.md has it
    assert 0 <= np.mean([one.distance > one.chance_high for one in found]) <= 0.15


def test_the_interval_is_that_of_resampled_prompts_around_the_distance():
    safe, harmful = two_kinds()
    found = separation(safe, harmful, Estimation(directions=3, shrinkage=0.1, resamples=4000))
    every, rng = projected(np.concatenate([safe, harmful]), 3).points, random.Random(5)
    drawn = [
        by_hand(every[rng.choices(range(40), k=40)], every[rng.choices(range(40, 73), k=33)], 0.1) for _ in range(4000)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975)) - np.mean(drawn) + found.distance
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)
    assert np.mean(drawn) > found.distance  # which the interval is moved by


def test_the_interval_holds_the_distance_of_other_prompts():
    means = [separation(*two_kinds(shift=1.5, seed=seed), HOW).distance for seed in range(100, 300)]
    found = [separation(*two_kinds(shift=1.5, seed=seed), HOW) for seed in range(60)]
    assert np.mean([one.low <= np.mean(means) <= one.high for one in found]) >= 0.88
    assert np.mean([one.high - one.low for one in found]) < 6 * np.std(means)


def test_an_interval_does_not_end_below_nothing():
    rng = np.random.default_rng(0)
    found = [
        separation(*rng.normal(size=(2, 20, 10)), Estimation(directions=4, shrinkage=0.0, resamples=200))
        for _ in range(20)
    ]
    assert min(one.low for one in found) == 0.0


def test_it_depends_on_the_seed_alone_and_every_layer_has_the_same_draws():
    safe, harmful = two_kinds()
    found = separation(safe, harmful, HOW)
    assert separation(safe, harmful, HOW) == found != separation(safe, harmful, replace(HOW, seed=1))
    twice = separation(2 * safe, 2 * harmful, HOW)
    assert (twice.low, twice.chance_high) == pytest.approx((found.low, found.chance_high))


def test_resamples_are_computed_in_parts(monkeypatch):
    safe, harmful = two_kinds()
    ways = []

    def watched(points, first, second, shrinkage):
        ways.append(len(first))
        assert (first.sum(-1) == 40).all() and (second.sum(-1) == 33).all()
        return distances(points, first, second, shrinkage)

    monkeypatch.setattr("fgrpo_plugin.eval.separation.distances", watched)
    separation(safe, harmful, Estimation(directions=3, shrinkage=0.1, resamples=1100))
    assert ways == [1, 500, 500, 100, 500, 500, 100]


def test_few_prompts_are_refused():
    assert [Estimation(k).least_prompts for k in (1, 5, 6, 20)] == [10, 10, 12, 40]
    safe, harmful = two_kinds()
    with pytest.raises(ValueError, match="11 prompts of a kind; 6 directions need 12"):
        separation(safe, harmful[:11], Estimation(6, resamples=5))
    separation(safe[:12], harmful[:12], Estimation(6, resamples=5))


@pytest.mark.parametrize(
    "given, why",
    [
        ({"directions": 0}, "directions=0 must be 1 or more"),
        ({"resamples": 0}, "resamples=0 must be 1 or more"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"shrinkage": -0.1}, r"shrinkage=-0\.1 must lie between 0 and 1"),
        ({"shrinkage": 1.1}, r"shrinkage=1\.1 must lie between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, why):
    with pytest.raises(ValueError, match=why):
        Estimation(**given)
    Estimation(directions=1, shrinkage=0.0, resamples=1), Estimation(shrinkage=1.0)
    assert Estimation() == Estimation(8, 0.05, 10_000, 0)


def test_the_shrinkage_bounds_how_far_means_lie_apart():
    """Two kinds that are apart without end, one direction of k: docs/separation.md has k / (2 a (k - 1))."""
    safe, harmful = two_kinds(count=400, shift=1e4)
    harmful = np.concatenate([harmful, harmful[:7]])
    is_safe = np.arange(800) < 400
    points = projected(np.concatenate([safe, harmful]), 4).points
    means = [np.stack([points[side].mean(0)]) for side in (is_safe, ~is_safe)]
    cov = shrunk((np.cov(points[:400].T) + np.cov(points[400:].T)) / 2, 0.05)
    assert bhattacharyya(means[0][0], cov, means[1][0], cov) == pytest.approx(4 / (2 * 0.05 * 3), rel=0.02)
