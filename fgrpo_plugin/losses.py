"""The losses: implicit reward, FDO and KLDO (off-policy), f-GRPO (on-policy) and f-HAL (both).

Shapes: n rows (responses), T response tokens; log-probs are natural (nats). Everything computes in float32 whatever the
model's dtype, or in float64 where an input is float64. No loss applies the scales s_all and s_on. Gradient flows
through `log_prob` alone.

Reference: Haldar et al., arXiv 2602.05946 (f-GRPO, f-HAL); Haldar et al., arXiv 2502.00657 (FDO).
"""

import math
from collections.abc import Sequence

import torch

from fgrpo_plugin.divergences import Divergence, get_divergence

__all__ = [
    "clip_implicit_reward",
    "f_grpo_loss",
    "f_grpo_row_losses",
    "f_hal_loss",
    "fdo_loss",
    "fdo_row_losses",
    "implicit_reward",
    "kldo_loss",
    "row_slopes",
]

Denominator = float | torch.Tensor


def implicit_reward(
    log_prob: torch.Tensor,
    ref_log_prob: torch.Tensor,
    response_mask: torch.Tensor,
    beta: float,
    *,
    old_log_prob: torch.Tensor | None = None,
    gamma: float = 0.0,
    level: str = "sequence",
) -> torch.Tensor:
    """How far the policy has moved towards a response.

        r_theta(x, y) = beta sum_t log(pi_theta / pi_ref)_t + gamma sum_t log(pi_theta / pi_old)_t

    gamma = 0 is the paper's definition; the gamma term is that of the authors' code, as others read it
    (docs/assumptions.md).

    Args:
        log_prob: log pi_theta of each token, (n, T); gradient flows.
        ref_log_prob: log pi_ref, (n, T); constant.
        response_mask: (n, T) in {0, 1}; what is masked may hold anything, NaN too.
        beta: > 0.
        old_log_prob: log pi_old, (n, T); constant; required if gamma != 0, not read otherwise.
        gamma: >= 0.
        level: "sequence" (sum over tokens), "sequence_mean" (sum / length) or "token" (one r per token).

    Returns:
        (n,), 0 for a row without tokens; at level token (n, T), 0 where masked.

    Raises:
        ValueError: shapes that disagree, beta or gamma out of range, unknown level, gamma without old_log_prob,
            unmasked log-probs that are not finite (rows named).
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta={beta} must be positive and finite")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma={gamma} must be >= 0 and finite")
    if level not in ("sequence", "sequence_mean", "token"):
        raise ValueError(f"unknown level={level!r}; choose 'sequence', 'sequence_mean' or 'token'")
    if log_prob.dim() != 2:
        raise ValueError(f"log_prob must have shape (n, T), got {tuple(log_prob.shape)}")
    _require_shape("response_mask", response_mask, tuple(log_prob.shape))
    terms = [("ref_log_prob", ref_log_prob, beta)]
    if gamma:
        if old_log_prob is None:
            raise ValueError(f"old_log_prob=None with gamma={gamma}: pass log pi_old, or gamma=0")
        terms.append(("old_log_prob", old_log_prob, gamma))

    masked = ~response_mask.bool()
    policy = log_prob.to(_compute_dtype(log_prob))  # upcast once, so that the terms' gradients add up in float32
    reward: torch.Tensor | None = None
    for argument, other, scale in terms:
        _require_shape(argument, other, tuple(log_prob.shape))
        ratio = (policy - other.detach()).masked_fill_(masked, 0.0)
        term = scale * (ratio if level == "token" else ratio.sum(dim=-1))
        reward = term if reward is None else reward + term
    assert reward is not None
    if level == "sequence_mean":
        reward = reward / (masked.shape[-1] - masked.sum(dim=-1)).clamp(min=1)
    _require_finite("log_prob, ref_log_prob or old_log_prob", reward)
    return reward


def clip_implicit_reward(
    r: torch.Tensor, divergence: Divergence, limit: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The implicit reward inside the divergence's float32 range, and where it was not.

    Args:
        r: (n,) or (n, T), finite; gradient flows where it is inside, and is 0 where it is not.
        divergence: its `range` is the widest one.
        limit: tightens the range to [-limit, limit]; > 0.

    Returns:
        The clipped reward and a bool mask of what was clipped, both of r's shape.

    Raises:
        ValueError: r not finite (rows named), limit not positive.
    """
    low, high = divergence.range
    if limit is not None:
        if not limit > 0:
            raise ValueError(f"limit={limit} must be positive, or None")
        low, high = max(low, -limit), min(high, limit)
    r = r.to(_compute_dtype(r))
    smallest, largest = torch.stack(r.detach().aminmax()).tolist() if r.numel() else (low, high)
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        _require_finite("implicit_reward", r)
    if low <= smallest and largest <= high:  # the rule; it saves a copy of r and of its gradient
        return r, torch.zeros((), dtype=torch.bool, device=r.device).expand(r.shape)
    clipped = r.clamp(low, high)
    return clipped, clipped.detach() != r.detach()


def f_grpo_loss(
    implicit_reward: torch.Tensor,
    advantages: torch.Tensor,
    divergence: Divergence,
    weights: torch.Tensor | None = None,
    *,
    response_mask: torch.Tensor | None = None,
    denominator: Denominator | None = None,
) -> torch.Tensor:
    """On-policy loss: rows above their group's mean stand for D+, rows below it for D-.

        L_fGRPO = 1/N sum_i |a_i| ( -w_i g(r_i) if a_i > 0 ;  +w_i f*(g(r_i)) if a_i < 0 )

    Rows with a_i = 0 contribute 0 and count. Rows without an unmasked token contribute 0 and do not count. r is clipped
    to the divergence's range. No policy ratio, no clipping of it, no KL term.

    Args:
        implicit_reward: r, (n,) or, at level token, (n, T): the sum runs over tokens too, a_i and w_i being the row's.
        advantages: a, (n,); constant.
        divergence: supplies g and f*(g).
        weights: w, (n,); constant; None means 1.
        response_mask: (n, T) in {0, 1}; required at level token, else it only says which rows have a token.
        denominator: N. None: this batch's own count of rows (tokens at level token), at least 1. Given, the losses of
            micro-batches add up to the loss of the whole.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that disagree, non-finite input (rows named), level token without mask, bad denominator.

    Reference:
        f-GRPO loss, arXiv 2602.05946.
    """
    rows = f_grpo_row_losses(implicit_reward, advantages, divergence, weights, response_mask=response_mask)
    return _mean(rows, _counted(implicit_reward, response_mask).sum(), denominator)


def f_grpo_row_losses(
    implicit_reward: torch.Tensor,
    advantages: torch.Tensor,
    divergence: Divergence,
    weights: torch.Tensor | None = None,
    *,
    response_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The summands of `f_grpo_loss`, one per row (at level token: summed over the row's tokens), not divided: (n,)."""
    counted = _counted(implicit_reward, response_mask)
    n = len(implicit_reward)
    _require_shape("advantages", advantages, (n,))
    magnitude = advantages.detach().abs().to(_compute_dtype(implicit_reward))
    if weights is not None:
        _require_shape("weights", weights, (n,))
        magnitude = magnitude * weights.detach().to(magnitude.dtype)
    _require_finite("advantages or weights", magnitude)

    # f-GRPO loss, arXiv 2602.05946.
    return magnitude * _side_losses(implicit_reward, advantages > 0, divergence, counted)


def fdo_loss(
    implicit_reward: torch.Tensor,
    desirable: torch.Tensor,
    divergence: Divergence,
    *,
    response_mask: torch.Tensor | None = None,
    denominator: Sequence[Denominator] | None = None,
) -> torch.Tensor:
    """Off-policy loss: the negative variational estimate of D_f(D+ || D-); paired and unpaired data both work.

        L_FDO = - mean_{D+ rows} g(r) + mean_{D- rows} f*(g(r))

    A side without rows contributes 0. Rows without an unmasked token contribute 0 and do not count. r is clipped to the
    divergence's range.

    Args:
        implicit_reward: r, (n,) or, at level token, (n, T): means over tokens then.
        desirable: (n,) bool; True for D+ (chosen, desirable), False for D- (rejected, undesirable).
        divergence: supplies g and f*(g).
        response_mask: (n, T) in {0, 1}; required at level token, else it only says which rows have a token.
        denominator: (D+, D-) counts that replace this batch's own; given, the losses of micro-batches add up.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that disagree, `desirable` not bool, non-finite r (rows named), level token without mask, bad
            denominator.

    Reference:
        FDO, arXiv 2502.00657; as the off-policy half of f-HAL, arXiv 2602.05946.
    """
    rows = fdo_row_losses(implicit_reward, desirable, divergence, response_mask=response_mask)
    return _side_means(rows, desirable, _counted(implicit_reward, response_mask), denominator)


def fdo_row_losses(
    implicit_reward: torch.Tensor,
    desirable: torch.Tensor,
    divergence: Divergence,
    *,
    response_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The summands of `fdo_loss`, -g(r) or +f*(g(r)) per row (level token: summed over tokens), not divided: (n,)."""
    counted = _counted(implicit_reward, response_mask)
    _require_labels(desirable, implicit_reward)
    return _side_losses(implicit_reward, desirable, divergence, counted)  # FDO, arXiv 2502.00657


def row_slopes(loss: torch.Tensor, implicit_reward: torch.Tensor) -> torch.Tensor:
    """How hard each response is pulled: |dL/dr_i|, at level token summed over tokens.

    Times beta + gamma that is the slope to the response's log-prob (the sum over its tokens; at level sequence_mean
    their mean; at level token the sum of the tokens' slopes). Only the loss is differentiated, not the model.

    Args:
        loss: scalar that was computed from `implicit_reward`.
        implicit_reward: r before `clip_implicit_reward`, so that what is clipped has slope 0; (n,) or (n, T), requires
            gradient.

    Returns:
        (n,), no gradient; the graph of the loss is kept.
    """
    (slope,) = torch.autograd.grad(loss, implicit_reward, retain_graph=True)
    slope = slope.abs()
    return slope if slope.dim() == 1 else slope.sum(dim=-1)


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

        - mean_{D+ rows} r + mean_{D- rows} ( exp(r - c) - 1 + c )         with c constant,

    which has the same value and the same gradient and is a sum over rows: `fdo_loss` with variational kl at r + 1 - c.

    Args:
        implicit_reward: r, (n,) or, at level token, (n, T): means over tokens then.
        desirable: (n,) bool; True for D+, False for D-.
        response_mask: (n, T) in {0, 1}; required at level token, else it only says which rows have a token.
        denominator: (D+, D-) counts of the whole step, for micro-batches that add up; requires log_mean_exp.
        log_mean_exp: c over all D- rows of the step, computed without gradient beforehand. None: this batch's own.

    Returns:
        Scalar. A side without rows contributes 0.

    Raises:
        ValueError: as `fdo_loss`; denominator without log_mean_exp, or a log_mean_exp that is not finite.

    Reference:
        KLDO, arXiv 2502.00657; Donsker and Varadhan, 1983.
    """
    counted = _counted(implicit_reward, response_mask)
    _require_labels(desirable, implicit_reward)
    if denominator is not None and log_mean_exp is None:
        raise ValueError(
            "log_mean_exp=None with a denominator: KLDO's log-mean-exp couples all D- rows of the step, so each part "
            "of it needs the value over all of them; pass it, or use fdo_loss with divergence 'kl'"
        )
    r = torch.where(counted, implicit_reward.to(_compute_dtype(implicit_reward)), 0.0)
    _require_finite("implicit_reward", r)
    side = desirable if r.dim() == 1 else desirable.unsqueeze(-1)
    unaligned = counted & ~side
    if log_mean_exp is None:
        rows = unaligned.sum(dtype=r.dtype)
        c = torch.where(unaligned, r.detach(), -torch.inf).flatten().logsumexp(0) - rows.log()
        c = torch.where(rows > 0, c, 0.0)
    else:
        c = torch.as_tensor(log_mean_exp, dtype=r.dtype, device=r.device).detach()
        if not bool(torch.isfinite(c)):
            raise ValueError(f"log_mean_exp={float(c)} must be finite")
    # KLDO, arXiv 2502.00657. A c that is the step's own bounds r - c by log(rows); the clamp guards against another.
    loss = torch.where(side, -r, torch.expm1((r - c).clamp(max=get_divergence("kl").range[1])) + c)
    loss = torch.where(counted, loss, 0.0)
    return _side_means(loss if r.dim() == 1 else loss.sum(dim=-1), desirable, counted, denominator)


def f_hal_loss(preference_loss: torch.Tensor, on_policy_loss: torch.Tensor, lam: float) -> torch.Tensor:
    """lambda L_FDO + (1 - lambda) L_on, where s_on, if any, is already in L_on.

    Args:
        preference_loss: L_FDO, scalar.
        on_policy_loss: L_fGRPO, scalar.
        lam: lambda in [0, 1]; at 0 and 1 the result is the one loss itself, and the other is not touched.

    Returns:
        Scalar.

    Raises:
        ValueError: lam outside [0, 1].

    Reference:
        f-HAL, arXiv 2602.05946.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam} must lie in [0, 1]: 0 is on-policy data only, 1 is preference data only")
    if lam == 0:
        return on_policy_loss
    if lam == 1:
        return preference_loss
    return lam * preference_loss + (1 - lam) * on_policy_loss


def _side_losses(
    reward: torch.Tensor, aligned: torch.Tensor, divergence: Divergence, counted: torch.Tensor
) -> torch.Tensor:
    """-g(r) for aligned rows, f*(g(r)) for the others, (n,); what does not count is 0, whatever it holds."""
    per_token = reward.dim() == 2
    r, _ = clip_implicit_reward(torch.where(counted, reward, 0.0), divergence)
    # Inside the range both branches and their slopes are finite, so the one not taken sends back an exact 0.
    link, conjugate = divergence.inside_range(r)
    side = aligned.unsqueeze(-1) if per_token else aligned
    loss = torch.where(side, -link, conjugate)
    loss = torch.where(counted, loss, 0.0)
    return loss.sum(dim=-1) if per_token else loss


def _side_means(
    rows: torch.Tensor, desirable: torch.Tensor, counted: torch.Tensor, denominator: Sequence[Denominator] | None
) -> torch.Tensor:
    """Sum of the row losses of each side over its own count, or over the given one."""
    if denominator is None:
        denominators: Sequence[Denominator | None] = (None, None)
    elif isinstance(denominator, Sequence | torch.Tensor) and len(denominator) == 2:
        denominators = denominator
    else:
        raise ValueError(f"denominator={denominator} must be a pair (D+ count, D- count), or None")
    counts = counted.sum(dim=-1) if counted.dim() == 2 else counted
    aligned, unaligned = (
        _mean(torch.where(side, rows, 0.0), torch.where(side, counts, 0).sum(), given)
        for side, given in zip((desirable, ~desirable), denominators, strict=True)
    )
    return aligned + unaligned


def _counted(reward: torch.Tensor, response_mask: torch.Tensor | None) -> torch.Tensor:
    """Which elements of the reward exist: unmasked tokens, or rows with at least one unmasked token."""
    if reward.dim() == 2:
        if response_mask is None:
            raise ValueError(f"response_mask=None with implicit_reward {tuple(reward.shape)}: level token requires it")
        _require_shape("response_mask", response_mask, tuple(reward.shape))
        return response_mask.bool()
    if reward.dim() != 1:
        raise ValueError(f"implicit_reward must have shape (n,) or (n, T), got {tuple(reward.shape)}")
    if response_mask is None:
        return torch.ones_like(reward, dtype=torch.bool)
    if response_mask.dim() != 2 or len(response_mask) != len(reward):
        raise ValueError(f"response_mask {tuple(response_mask.shape)} must be (n, T) with n = {len(reward)}")
    return response_mask.bool().any(dim=-1)


def _mean(rows: torch.Tensor, count: torch.Tensor, denominator: Denominator | None) -> torch.Tensor:
    """sum(rows) / denominator, divided first: near the edge of a range two rows can be more than float32 holds."""
    if denominator is None:
        return (rows / count.clamp(min=1)).sum()
    if not denominator > 0:
        if denominator == 0 and not count.any():
            return rows.sum()
        raise ValueError(f"denominator={float(denominator)} must be positive where there are rows to count")
    return (rows / denominator).sum()


def _compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _require_shape(argument: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{argument} has shape {tuple(tensor.shape)}, which must be {shape}")


def _require_labels(desirable: torch.Tensor, reward: torch.Tensor) -> None:
    _require_shape("desirable", desirable, (len(reward),))
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable must be a bool tensor, got {desirable.dtype}; pass (labels > 0)")


def _require_finite(argument: str, tensor: torch.Tensor) -> None:
    if bool(torch.isfinite(tensor.detach().sum())):  # one pass without a copy; finite numbers rarely overflow it
        return
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(dim=-1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{argument} is not finite in {len(bad)} rows, the first of them {bad[:8]}; find what made it so"
        )
