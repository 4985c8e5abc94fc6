"""The loss of each row by its side, and the means of row losses.

The positive side (positive advantage, or desirable) gets -g(r), the negative side f*(g(r)).
"""

from collections.abc import Sequence

import torch

from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.losses.checks import require_shape
from fgrpo_plugin.losses.reward import clip_implicit_reward

Denominator = float | torch.Tensor
"""What a loss is divided by, in place of the batch's own number of rows (of tokens at level token)."""


def side_losses(
    reward: torch.Tensor, positive: torch.Tensor, divergence: Divergence, counted: torch.Tensor
) -> torch.Tensor:
    """Return -g(r) for positive rows and f*(g(r)) for the others, (n,); what is not counted is 0, whatever it holds."""
    r, _ = clip_implicit_reward(torch.where(counted, reward, 0.0), divergence)
    return side_losses_inside(r, positive, divergence, counted)


def side_losses_inside(
    r: torch.Tensor, positive: torch.Tensor, divergence: Divergence, counted: torch.Tensor
) -> torch.Tensor:
    """Return `side_losses` of an r that lies inside the divergence's range everywhere, also where it is not counted."""
    # Inside the range both branches and their slopes are finite, so the one not taken sends back an exact 0.
    link, conjugate = divergence.inside_range(r)
    if r.dim() == 1:
        return torch.where(counted, torch.where(positive, -link, conjugate), 0.0)
    loss = torch.where(counted, torch.where(positive.unsqueeze(-1), link, conjugate), 0.0).sum(dim=-1)
    return torch.where(positive, -loss, loss)  # the sign is the row's, so it is not given to every token


def side_means(
    rows: torch.Tensor, desirable: torch.Tensor, counted: torch.Tensor, denominator: Sequence[Denominator] | None
) -> torch.Tensor:
    """Add up both sides' row losses, each over its own denominator: its number of rows, or the given one."""
    if denominator is None:
        denominators: Sequence[Denominator | None] = (None, None)
    elif isinstance(denominator, Sequence | torch.Tensor) and len(denominator) == 2:
        denominators = denominator
    else:
        raise ValueError(f"denominator={denominator} must be a pair, one for D+ and one for D-, or None")
    counts = counted.sum(dim=-1) if counted.dim() == 2 else counted
    of_desirable, of_undesirable = (
        side_mean(torch.where(side, rows, 0.0), torch.where(side, counts, 0).sum(), given)
        for side, given in zip((desirable, ~desirable), denominators, strict=True)
    )
    return of_desirable + of_undesirable


def side_mean(rows: torch.Tensor, count: torch.Tensor, denominator: Denominator | None) -> torch.Tensor:
    """sum(rows) / denominator, divided first: near the edge of a range two rows can be more than float32 holds."""
    if denominator is None:
        return (rows / count.clamp(min=1)).sum()
    if not denominator > 0:
        if denominator == 0 and not count.any():
            return rows.sum()
        raise ValueError(f"denominator={float(denominator)} must be positive where there are rows to count")
    return (rows / denominator).sum()


def counted_elements(reward: torch.Tensor, response_mask: torch.Tensor | None) -> torch.Tensor:
    """Return which elements of the reward exist: unmasked tokens, or rows with at least one unmasked token."""
    if reward.dim() == 2:
        if response_mask is None:
            raise ValueError(f"response_mask=None with implicit_reward {tuple(reward.shape)}: level token requires it")
        require_shape("response_mask", response_mask, tuple(reward.shape))
        return response_mask.bool()
    if reward.dim() != 1:
        raise ValueError(f"implicit_reward must have shape (n,) or (n, T), got {tuple(reward.shape)}")
    if response_mask is None:
        return torch.ones_like(reward, dtype=torch.bool)
    if response_mask.dim() != 2 or len(response_mask) != len(reward):
        raise ValueError(f"response_mask {tuple(response_mask.shape)} must be (n, T) with n = {len(reward)}")
    return response_mask.bool().any(dim=-1)
