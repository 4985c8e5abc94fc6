"""FDO: the off-policy loss on preference rows."""

from collections.abc import Sequence

import torch

from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.losses.checks import require_labels
from fgrpo_plugin.losses.sides import Denominator, counted_elements, side_losses, side_means


def fdo_loss(
    implicit_reward: torch.Tensor,
    desirable: torch.Tensor,
    divergence: Divergence,
    *,
    response_mask: torch.Tensor | None = None,
    denominator: Sequence[Denominator] | None = None,
) -> torch.Tensor:
    """Compute the off-policy loss, -1 times the variational estimate of D_f(D+ || D-), of paired or unpaired data.

        L_FDO = - mean_{D+ rows} g(r) + mean_{D- rows} f*(g(r))

    A side without rows contributes 0. Rows without an unmasked token contribute 0 and do not count. r is clipped to the
    divergence's range.

    Args:
        implicit_reward: r, (n,) or, at level token, (n, T): means over tokens then.
        desirable: (n,) bool; True for D+ (chosen, desirable), False for D- (rejected, undesirable).
        divergence: supplies g and f*(g).
        response_mask: (n, T) in {0, 1}; required at level token, else it only says which rows have a token.
        denominator: one for D+ and one for D-, in place of this batch's numbers of rows (tokens at level token);
            given, the losses of micro-batches add up.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that disagree, `desirable` not bool, non-finite r (rows named), level token without mask, bad
            denominator.

    Reference:
        FDO, arXiv 2502.00657; as the off-policy half of f-HAL, arXiv 2602.05946.
    """
    rows = fdo_row_losses(implicit_reward, desirable, divergence, response_mask=response_mask)
    return side_means(rows, desirable, counted_elements(implicit_reward, response_mask), denominator)


def fdo_row_losses(
    implicit_reward: torch.Tensor,
    desirable: torch.Tensor,
    divergence: Divergence,
    *,
    response_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The summands of `fdo_loss`, -g(r) or +f*(g(r)) per row (level token: summed over tokens), not divided: (n,)."""
    counted = counted_elements(implicit_reward, response_mask)
    require_labels(desirable, implicit_reward)
    return side_losses(implicit_reward, desirable, divergence, counted)  # FDO, arXiv 2502.00657
