"""Divergences, tables of probabilities and the path of an iteration, for the tests of the theorems."""

import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.theory import expected_reward

VARIATIONAL = (
    "kl",
    "reverse_kl",
    "pearson",
    "pearson_restricted",
    "neyman",
    "squared_hellinger",
    "jensen_shannon",
    "gan",
)
ATTAINED = [
    *((name, "variational", {}) for name in VARIATIONAL),
    *((name, "density_ratio", {}) for name in (*VARIATIONAL, "jeffreys")),
    *(("alpha", "density_ratio", {"alpha": a}) for a in (-1.0, 0.5, 3.0)),
]
EVERY = [*ATTAINED, ("total_variation", "variational", {})]
PAPER_BETA = 0.1


def divergence(key):
    name, link, params = key
    return get_divergence(name, link, **params)


def tables(prompts, responses=6, seed=0):
    """Reference, start and rewards, (prompts, responses)."""
    draw = torch.Generator().manual_seed(seed)
    reference, start = (
        torch.rand(prompts, responses, generator=draw, dtype=torch.float64).square() + 0.01 for _ in range(2)
    )
    rewards = 2 * torch.rand(prompts, responses, generator=draw, dtype=torch.float64)
    return reference / reference.sum(-1, keepdim=True), start / start.sum(-1, keepdim=True), rewards


def prompt(seed=3):
    reference, _, rewards = tables(1, seed=seed)
    return reference[0], rewards[0]


def reward_path(step, start, rewards, steps=100):
    """E R along the iteration, (steps + 1, prompts)."""
    policy, path = start, [expected_reward(start, rewards)]
    for _ in range(steps):
        policy = step(policy)
        torch.testing.assert_close(policy.sum(-1), torch.ones(len(start), dtype=torch.float64))
        path.append(expected_reward(policy, rewards))
    return torch.stack(path)


def draws(prompts, responses, seed):
    """References of very uneven probabilities, and rewards of very different spreads."""
    draw = torch.Generator().manual_seed(seed)
    one, two = (torch.rand(prompts, responses, generator=draw, dtype=torch.float64) for _ in range(2))
    reference = one * two**3 + 1e-4
    spread = 4 * torch.rand(prompts, 1, generator=draw, dtype=torch.float64)
    rewards = spread * torch.rand(prompts, responses, generator=draw, dtype=torch.float64)
    return reference / reference.sum(-1, keepdim=True), rewards
