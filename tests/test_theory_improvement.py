"""Theorems 4.3 and 4.4: which iterations raise the expected reward, and which need not; GRPO beside them."""

import pytest
import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.theory import (
    alignment_sides,
    expected_reward,
    grpo_fixed_point,
    grpo_iterate,
    iterate,
    mass_below_mean,
)
from tests.support.theory_tables import ATTAINED, EVERY, PAPER_BETA, divergence, draws, reward_path, tables

# Theorem 4.3: reward improvement.


def improvement(key, beta, eps, seed=0, prompts=200, steps=25, preferences=0.0):
    """E R along the iteration from the reference, for 2, 3 and 6 responses: (steps + 1, 3 * prompts).

    With preferences (f-HAL) the sides are mixtures with lambda of those that the reference's own rewards make.
    """
    paths = []
    for responses in (2, 3, 6):
        reference, rewards = draws(prompts, responses, seed + responses)
        fixed = alignment_sides(reference, rewards, eps)

        def step(policy, reference=reference, rewards=rewards, fixed=fixed):
            sides = alignment_sides(policy, rewards, eps)
            mixed = (preferences * p + (1 - preferences) * s for p, s in zip(fixed, sides, strict=True))
            return iterate(reference, *mixed, divergence(key), beta)

        paths.append(reward_path(step, reference, rewards, steps))
    return torch.cat(paths, dim=1)


@pytest.mark.parametrize("beta", [PAPER_BETA, 1.0, 3.0])
@pytest.mark.parametrize("key", EVERY, ids=str)
def test_disjoint_sides_improve_at_every_iterate_until_nothing_is_left_to_gain(key, beta):
    """g^-1(f'(inf)) is infinite for every entry, so this is the theorem's strict case."""
    path = improvement(key, beta, eps=0.0)
    rises = path.diff(dim=0)
    done = path[1:] == path[:-1]
    assert (rises[~done] > 0).all() and (path[1:] > path[0]).all()
    best = torch.cat([draws(200, responses, responses)[1].amax(-1) for responses in (2, 3, 6)])
    torch.testing.assert_close(path[-1], best)


@pytest.mark.parametrize("key", EVERY, ids=str)
def test_smoothed_sides_improve_where_that_was_observed(key):
    """Not claimed by the paper. Variational squared_hellinger halves r*, as twice the beta would: it falls earlier."""
    halved = key[:2] == ("squared_hellinger", "variational")
    for eps, slack in ((1e-4, 1e-12), (0.1, 1e-9), *(() if halved else ((0.3, 1e-9), (0.5, 1e-5)))):
        assert (improvement(key, PAPER_BETA, eps).diff(dim=0) >= -slack).all(), eps


@pytest.mark.parametrize("preferences", [0.0, 0.6])
@pytest.mark.parametrize("key", EVERY, ids=str)
def test_smoothed_sides_never_fall_below_the_reference_at_the_papers_beta(key, preferences):
    """mu_t > mu_ref; of 600 draws for each entry and eps, with agreeing preferences too."""
    for eps in (0.0, 1e-2, 0.3, 0.5, 0.9):
        path = improvement(key, PAPER_BETA, eps, seed=50, preferences=preferences)
        assert (path[1:] > path[0]).all(), eps


def _walk(reference, rewards, name, link, beta, eps, steps):
    reference, rewards = torch.tensor(reference).double(), torch.tensor(rewards).double()
    reference = reference / reference.sum()
    policy, path = reference, [expected_reward(reference, rewards).item()]
    for _ in range(steps):
        policy = iterate(reference, *alignment_sides(policy, rewards, eps), get_divergence(name, link), beta)
        path.append(expected_reward(policy, rewards).item())
    return path


def test_smoothed_sides_need_not_improve_at_every_iterate():
    """beta not small: the iterate starts anew from the reference, and a good policy is followed by a worse one."""
    path = _walk([0.99, 0.01], [0.0, 1.0], "kl", "density_ratio", beta=1.0, eps=0.5, steps=2)
    assert path == pytest.approx([0.01, 0.672, 0.092], abs=5e-4)
    # eps near 1, at the paper's beta.
    path = _walk([0.171, 0.003, 0.826], [3.19, 0.15, 1.75], "kl", "density_ratio", PAPER_BETA, eps=0.9, steps=3)
    assert path == pytest.approx([1.991, 3.147, 3.054, 2.652], abs=5e-3) and path[3] < path[1] - 0.4


def test_smoothed_sides_may_fall_below_the_reference_at_a_large_beta_and_eps():
    """Not the theorem's case, but it bounds what may be said of smoothed sides."""
    path = improvement(("neyman", "variational", {}), 1.0, 0.9, seed=0, prompts=700)
    assert (path[1:] < path[0] - 0.01).any()
    assert (improvement(("kl", "variational", {}), 1.0, 0.1, prompts=700)[1:] >= path[0]).all()


@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("lam", [0.3, 0.9])
@pytest.mark.parametrize("key", ATTAINED, ids=str)
def test_reward_never_decreases_with_preferences_that_agree(key, lam, eps):
    """f-HAL: the sides are mixtures with lambda of preference data that the reference's own rewards made."""
    if key[:2] == ("squared_hellinger", "variational") and eps:
        return  # falls by 1e-4 and less; test_smoothed_sides_never_fall_below... has its bound
    d = divergence(key)
    reference, start, rewards = tables(50)
    preferences = alignment_sides(reference, rewards, eps)

    def step(policy):
        sides = alignment_sides(policy, rewards, eps)
        mixed = (lam * p + (1 - lam) * s for p, s in zip(preferences, sides, strict=True))
        return iterate(reference, *mixed, d, PAPER_BETA)

    path = reward_path(step, start, rewards)
    assert (path.diff(dim=0) >= -1e-12).all()
    assert (path[-1] > path[0]).all()


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("key", EVERY, ids=str)
def test_control_with_swapped_sides_decreases(key, eps):
    d = divergence(key)
    reference, start, rewards = tables(50)

    def step(policy):
        aligned, unaligned = alignment_sides(policy, rewards, eps)
        return iterate(reference, unaligned, aligned, d, PAPER_BETA)

    path = reward_path(step, start, rewards)
    assert (path[1] < path[0]).all() and (path[-1] < path[0] - 0.2).all()


def test_where_the_smoothed_and_the_mixed_form_stop_improving():
    """They are statements for a small eps and beta and for links that grow. docs/theory.md gives the figures."""
    reference, start, rewards = tables(50)
    d = get_divergence("squared_hellinger")
    path = reward_path(lambda pi: iterate(reference, *alignment_sides(pi, rewards, 0.1), d, 1.0), start, rewards)
    assert (path.diff(dim=0) < -0.01).any()

    # total_variation sees a sign only: nine parts of preferences outvote a policy that is already better than them.
    preferences = alignment_sides(reference, rewards)

    def mixed(policy):
        sides = alignment_sides(policy, rewards)
        together = (0.9 * p + 0.1 * s for p, s in zip(preferences, sides, strict=True))
        return iterate(reference, *together, get_divergence("total_variation"), PAPER_BETA)

    assert (reward_path(mixed, start, rewards).diff(dim=0) < -0.01).any()


# Theorem 4.4: the contrast with GRPO.


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("beta", [PAPER_BETA, 1.0, 10.0])
def test_grpo_is_above_the_reference_but_need_not_improve_at_every_iterate(beta, normalize_by_std):
    """pi ~ pi_ref exp(a/beta), response by response; mu_t > mu_ref, and nothing is said of one iterate."""
    reference, rewards = draws(300, 6, 9)
    mu = expected_reward(reference, rewards).unsqueeze(-1)
    sigma = (reference * (rewards - mu).square()).sum(-1, keepdim=True).sqrt() if normalize_by_std else 1.0
    tilted = (reference.log() + (rewards - mu) / (beta * sigma)).softmax(-1)
    policy, path = reference, []
    for _ in range(20):
        policy = grpo_iterate(reference, policy, rewards, beta, normalize_by_std=normalize_by_std)
        if not path:
            torch.testing.assert_close(policy, tilted)
        path.append(expected_reward(policy, rewards))
    assert (torch.stack(path) > expected_reward(reference, rewards)).all()
    # From a policy that is better than the tilt of the reference, the iterate is worse than the policy.
    good = 0.9 * torch.nn.functional.one_hot(rewards.argmax(-1), 6) + 0.1 * reference
    after = grpo_iterate(reference, good, rewards, 10.0, normalize_by_std=normalize_by_std)
    assert (expected_reward(after, rewards) < expected_reward(good, rewards)).float().mean() > 0.5


@pytest.mark.parametrize("beta", [PAPER_BETA, 1.0, 3.0])
@pytest.mark.parametrize("key", EVERY, ids=str)
def test_f_grpo_iterate_ends_with_no_mass_below_the_mean(key, beta):
    reference, start, rewards = tables(50)
    policy = start
    for _ in range(100):
        policy = iterate(reference, *alignment_sides(policy, rewards), divergence(key), beta)
    assert (policy * (rewards < rewards.amax(-1, keepdim=True))).sum() == 0 == mass_below_mean(policy, rewards).sum()


@pytest.mark.parametrize("beta", [PAPER_BETA, 0.5, 1.0, 2.0, 3.0])
def test_grpo_without_std_keeps_mass_below_the_mean(beta):
    reference, start, rewards = tables(50)
    policy = grpo_fixed_point(reference, start, rewards, beta, normalize_by_std=False)
    tilted = reference * (rewards / beta).exp()
    torch.testing.assert_close(policy, tilted / tilted.sum(-1, keepdim=True))
    assert (mass_below_mean(policy, rewards) > 1e-4).all()


def test_grpo_with_std_keeps_mass_below_the_mean_if_beta_is_large_enough():
    reference, start, rewards = tables(50)
    policy = grpo_fixed_point(reference, start, rewards, 3.0)
    mean = expected_reward(policy, rewards).unsqueeze(-1)
    sigma = (policy * (rewards - mean).square()).sum(-1, keepdim=True).sqrt()
    tilted = reference * ((rewards - mean) / (3.0 * sigma)).exp()
    torch.testing.assert_close(policy, tilted / tilted.sum(-1, keepdim=True), rtol=1e-6, atol=1e-9)
    assert (mass_below_mean(policy, rewards) > 0.05).all()
    # A small beta has no such fixed point: as the policy concentrates sigma shrinks, and with it the penalty.
    assert (grpo_fixed_point(reference, start, rewards, PAPER_BETA).amax(-1) > 1 - 1e-9).all()
