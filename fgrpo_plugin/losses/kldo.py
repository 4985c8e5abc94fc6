"""KLDO: the Donsker-Varadhan relative of FDO with kl."""

from collections.abc import Sequence

import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses.checks import compute_dtype, require_finite, require_labels
from fgrpo_plugin.losses.sides import Denominator, counted_elements, side_means


def kldo_loss(
    implicit_reward: torch.Tensor,
    desirable: torch.Tensor,
    *,
    response_mask: torch.Tensor | None = None,
    denominator: Sequence[Denominator] | None = None,
    log_mean_exp: Denominator | None = None,
) -> torch.Tensor:
    """KLDO: the Donsker-Varadhan form of KL(D+ || D-), which a constant added to r does not change.

        L_KLDO = - mean_{D+ rows} r + c,    c = log mean_{D- rows} exp(r)

    The logarithm couples all D- rows of an optimiser step, so no micro-batch or rank can compute it alone. Computed as

        L = - mean_{D+ rows} r + mean_{D- rows} ( exp(r - c) - 1 + c )         with c constant,

    which has the same value and the same gradient and is a sum over rows: `fdo_loss` with variational kl at r + 1 - c.

    Args:
        implicit_reward: r, (n,) or, at level token, (n, T): means over tokens then.
        desirable: (n,) bool; True for D+, False for D-.
        response_mask: (n, T) in {0, 1}; required at level token, else it only says which rows have a token.
        denominator: one for D+ and one for D-, of the whole step, for micro-batches that add up; requires log_mean_exp.
        log_mean_exp: c over all D- rows of the step, computed without gradient beforehand. None: this batch's own.

    Returns:
        Scalar. A side without rows contributes 0.

    Raises:
        ValueError: as `fdo_loss`; denominator without log_mean_exp, or a log_mean_exp that is not finite.

    Reference:
        KLDO, arXiv 2502.00657; Donsker and Varadhan, 1983.
    """
    counted = counted_elements(implicit_reward, response_mask)
    require_labels(desirable, implicit_reward)
    if denominator is not None and log_mean_exp is None:
        raise ValueError(
            "log_mean_exp=None with a denominator: KLDO's log-mean-exp couples all D- rows of the step, so each part "
            "of it needs the value over all of them; pass it, or use fdo_loss with divergence 'kl'"
        )
    r = torch.where(counted, implicit_reward.to(compute_dtype(implicit_reward)), 0.0)
    require_finite("implicit_reward", r)
    side = desirable if r.dim() == 1 else desirable.unsqueeze(-1)
    undesirable = counted & ~side
    if log_mean_exp is None:
        rows = undesirable.sum(dtype=r.dtype)
        c = torch.where(undesirable, r.detach(), -torch.inf).flatten().logsumexp(0) - rows.log()
        c = torch.where(rows > 0, c, 0.0)
    else:
        c = torch.as_tensor(log_mean_exp, dtype=r.dtype, device=r.device).detach()
        if not bool(torch.isfinite(c)):
            raise ValueError(f"log_mean_exp={float(c)} must be finite")
    # KLDO, arXiv 2502.00657. A c that is the step's own bounds r - c by log(rows); the clamp guards against another.
    loss = torch.where(side, -r, torch.expm1((r - c).clamp(max=get_divergence("kl").range[1])) + c)
    loss = torch.where(counted, loss, 0.0)
    return side_means(loss if r.dim() == 1 else loss.sum(dim=-1), desirable, counted, denominator)
