"""f-GRPO: the on-policy loss."""

import torch

from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.losses.checks import compute_dtype, require_finite, require_shape
from fgrpo_plugin.losses.sides import Denominator, counted_elements, side_losses, side_mean


def f_grpo_loss(
    implicit_reward: torch.Tensor,
    advantages: torch.Tensor,
    divergence: Divergence,
    weights: torch.Tensor | None = None,
    *,
    response_mask: torch.Tensor | None = None,
    denominator: Denominator | None = None,
) -> torch.Tensor:
    """Compute the on-policy loss: rows with positive advantage stand for D+, those with negative advantage for D-.

        L_fGRPO = 1/N sum_i |a_i| ( -w_i g(r_i) if a_i > 0 ;  +w_i f*(g(r_i)) if a_i < 0 )

    Rows with a_i = 0 contribute 0 and count. Rows without an unmasked token contribute 0 and do not count. r is clipped
    to the divergence's range. No policy ratio, no clipping of it, no KL term.

    Args:
        implicit_reward: r, (n,) or, at level token, (n, T): the sum runs over tokens too, a_i and w_i being the row's.
        advantages: a, (n,); constant.
        divergence: supplies g and f*(g).
        weights: w, (n,); constant; None means 1.
        response_mask: (n, T) in {0, 1}; required at level token, else it only says which rows have a token.
        denominator: N. None: the number of rows in this batch (tokens at level token), at least 1. Given, the losses
            of micro-batches add up to the loss of the whole.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that disagree, non-finite input (rows named), level token without mask, bad denominator.

    Reference:
        f-GRPO loss, arXiv 2602.05946.
    """
    rows = f_grpo_row_losses(implicit_reward, advantages, divergence, weights, response_mask=response_mask)
    return side_mean(rows, counted_elements(implicit_reward, response_mask).sum(), denominator)


def f_grpo_row_losses(
    implicit_reward: torch.Tensor,
    advantages: torch.Tensor,
    divergence: Divergence,
    weights: torch.Tensor | None = None,
    *,
    response_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The summands of `f_grpo_loss`, one per row (at level token: summed over the row's tokens), not divided: (n,)."""
    counted = counted_elements(implicit_reward, response_mask)
    require_shape("advantages", advantages, (len(implicit_reward),))
    if weights is not None:
        require_shape("weights", weights, (len(implicit_reward),))
    magnitude = row_magnitudes(advantages, weights, compute_dtype(implicit_reward))
    require_finite("advantages or weights", magnitude)
    return magnitude * side_losses(implicit_reward, advantages > 0, divergence, counted)  # f-GRPO, arXiv 2602.05946


def row_magnitudes(advantages: torch.Tensor, weights: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """|a_i| w_i, (n,), constant: what a row's loss is multiplied by."""
    magnitude = advantages.detach().abs().to(dtype)
    return magnitude if weights is None else magnitude * weights.detach().to(dtype)
