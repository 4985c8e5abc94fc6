"""The implicit reward, and its clip to the range in which a divergence is finite."""

import math

import torch

from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.losses.checks import LOG_PROBS, compute_dtype, finite_extremes, require_finite, require_shape


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
    """Compute the implicit reward: how much likelier the policy makes each response than the reference does.

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
    require_shape("response_mask", response_mask, tuple(log_prob.shape))
    require_shape("ref_log_prob", ref_log_prob, tuple(log_prob.shape))
    if gamma and old_log_prob is None:
        raise ValueError(f"old_log_prob=None with gamma={gamma}: pass log pi_old, or gamma=0")
    mask = response_mask.bool()
    policy = log_prob.to(compute_dtype(log_prob))  # upcast once, so that the terms' gradients add up in float32
    ratio = at_level(masked_log_ratio(policy, ref_log_prob, mask), level)
    old_ratio = None
    if gamma and old_log_prob is not None:
        require_shape("old_log_prob", old_log_prob, tuple(log_prob.shape))
        old_ratio = at_level(masked_log_ratio(policy, old_log_prob, mask), level)
    reward = reward_of_ratios(ratio, old_ratio, mask.sum(dim=-1), beta, gamma, level)
    require_finite(LOG_PROBS, reward)
    return reward


def masked_log_ratio(log_prob: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log(pi_theta / pi_other) of each token, (n, T), 0 where masked."""
    return (log_prob - other.detach()).masked_fill_(~mask, 0.0)


def at_level(ratio: torch.Tensor, level: str) -> torch.Tensor:
    """Sum log-ratios over tokens, (n,); at level token return them as they are, (n, T)."""
    return ratio if level == "token" else ratio.sum(dim=-1)


def reward_of_ratios(
    ratio: torch.Tensor,
    old_ratio: torch.Tensor | None,
    tokens: torch.Tensor,
    beta: float,
    gamma: float | torch.Tensor,
    level: str,
) -> torch.Tensor:
    """Compute `implicit_reward` from log-ratios, without the check that it is finite, which waits for the device.

    Args:
        ratio: log(pi_theta / pi_ref), `at_level`.
        old_ratio: log(pi_theta / pi_old), likewise, or None where gamma is 0.
        tokens: (n,) response tokens.
        beta: > 0.
        gamma: >= 0, one for all rows or of the ratio's shape.
        level: as there.
    """
    # The implicit reward, arXiv 2602.05946; the gamma term is the authors' code's (docs/assumptions.md).
    reward = beta * ratio
    if old_ratio is not None:
        reward = reward + gamma * old_ratio
    return reward / tokens.clamp(min=1) if level == "sequence_mean" else reward


def clip_implicit_reward(
    r: torch.Tensor, divergence: Divergence, limit: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip the implicit reward to the divergence's float32 range, and return where it was outside.

    Args:
        r: (n,) or (n, T), finite; gradient flows where it is inside, and is 0 where it is not.
        divergence: its `range` is the widest one.
        limit: tightens the range to [-limit, limit]; > 0.

    Returns:
        The clipped reward and a bool mask of what was clipped, both of r's shape.

    Raises:
        ValueError: r not finite (rows named), limit not positive.
    """
    r = r.to(compute_dtype(r))
    clipped, where = clip_between(r, clip_range(divergence, limit), finite_extremes("implicit_reward", r))
    return clipped, torch.zeros_like(r, dtype=torch.bool) if where is None else where


def clip_range(divergence: Divergence, limit: float | None) -> tuple[float, float]:
    """(low, high) to which `clip_implicit_reward` clips."""
    low, high = divergence.range
    if limit is None:
        return low, high
    if not limit > 0:
        raise ValueError(f"limit={limit} must be positive, or None")
    return max(low, -limit), min(high, limit)


def clip_between(
    r: torch.Tensor, bounds: tuple[float, float], extremes: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`clip_implicit_reward` of r whose smallest and largest number are known, and finite. None: none was clipped."""
    if bounds[0] <= extremes[0] and extremes[1] <= bounds[1]:  # the rule; it saves a copy of r and of its gradient
        return r, None
    clipped = r.clamp(*bounds)
    return clipped, clipped.detach() != r.detach()
