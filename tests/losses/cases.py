"""Rows for the tests of the losses, and the losses once more as plain loops over rows and tokens."""

import torch

LEVELS = ("sequence", "sequence_mean", "token")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(n=7, tokens=5, seed=0, dtype=torch.float64):
    """Log-probs of three policies, a mask with holes and an empty row, advantages of every sign, weights."""
    draw = torch.Generator().manual_seed(seed)
    log_prob, ref, old = (-3 * torch.rand(n, tokens, generator=draw, dtype=torch.float64) for _ in range(3))
    mask = (torch.rand(n, tokens, generator=draw) < 0.7).long()
    mask[0], mask[1:, 0] = 0, 1
    advantages = torch.randn(n, generator=draw, dtype=torch.float64)
    advantages[2] = 0
    weights = 2 * torch.rand(n, generator=draw, dtype=torch.float64)
    return log_prob.to(dtype), ref.to(dtype), old.to(dtype), mask, advantages, weights


def loop_rewards(log_prob, ref, old, mask, beta, gamma, level):
    """One list of rewards per row: all its tokens at level token, else one; empty where the row has no token."""
    result = []
    for i in range(len(mask)):
        tokens = [
            beta * (log_prob[i, t] - ref[i, t]).item() + gamma * (log_prob[i, t] - old[i, t]).item()
            for t in range(mask.shape[1])
            if mask[i, t]
        ]
        if level == "token" or not tokens:
            result.append(tokens)
        else:
            result.append([sum(tokens) / (len(tokens) if level == "sequence_mean" else 1)])
    return result
