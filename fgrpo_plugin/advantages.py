"""Group advantages and truncated importance weights: one number per rollout, from the rewards of its prompt's group.

Shapes: n rows (rollouts), T response tokens. A group is the set of rows with equal `group_ids`; groups may differ in
size and their rows may lie anywhere. Inside, everything is float64; results are float32, or float64 where `rewards` is.

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]), ["p", "p", "p", "q", "q"])  # q has nothing to compare
    tensor([ 1.1547, -0.5773, -0.5773,  0.0000,  0.0000])
    >>> group_weights(torch.tensor([2.0, 1.0, 0.0, 0.0]), ["p"] * 4, "softmax")  # a mean of 1 on each side
    tensor([1.4621, 0.5379, 1.0000, 1.0000])

Reference: Haldar et al., arXiv 2602.05946 (f-GRPO). docs/assumptions.md says what is known of the paper, and how.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["group_advantages", "group_weights"]

GroupIds = torch.Tensor | np.ndarray | Sequence[Hashable]


def group_advantages(
    rewards: torch.Tensor, group_ids: GroupIds, normalize_by_std: bool = True, eps: float = 1e-6
) -> torch.Tensor:
    """Compute the advantage of each rollout within its group.

        a_i = (R_i - mean_group R) / (std_group R + eps),        std unbiased (n - 1)

    Exactly 0 in a group whose largest reward equals its smallest, so in a group of one row too, and for a reward that
    equals the mean to within the rounding of the mean.

    Args:
        rewards: R, shape (n,), finite.
        group_ids: (n,) hashables (prompt ids); a tensor or numeric array is encoded fastest.
        normalize_by_std: divide by the standard deviation; else a_i = R_i - mean.
        eps: added to the standard deviation, >= 0.

    Returns:
        (n,), no gradient.

    Raises:
        ValueError: shapes that disagree, non-finite rewards (rows named), eps < 0.
    """
    if not eps >= 0:
        raise ValueError(f"eps={eps} must be >= 0")
    values, group, groups = _encode(rewards, group_ids)
    centred, count = _centre(values, group, groups)
    if normalize_by_std:
        variance = _sum_by(group, groups, centred.square()) / (count - 1).clamp(min=1)
        scale = (variance.sqrt() + eps)[group]
        # A row that is off its group's mean has std > 0; the others are 0 and stay so where eps is 0.
        centred = torch.where(centred == 0, 0.0, centred / scale)
    return centred.to(_result_dtype(rewards))


def group_weights(
    rewards: torch.Tensor,
    group_ids: GroupIds,
    mode: str = "none",
    old_log_prob: torch.Tensor | None = None,
    response_mask: torch.Tensor | None = None,
    weight_cap: float | None = None,
    *,
    weight_temperature: float = 1.0,
    old_log_prob_level: str = "token_mean",
    weight_scale: str = "side",
) -> torch.Tensor:
    """Compute the weight of each rollout within its group, from its reward and pi_old (importance sampling).

        w+_i = c softmax_i( +R_i / temperature - log pi_old(y_i) )      kept where a_i > 0
        w-_i = c softmax_i( -R_i / temperature - log pi_old(y_i) )      kept where a_i < 0

    `weight_scale="group"` is the paper's: each softmax runs over all rows of the group and c = 1, so that a side's
    weights add up to less than 1. `weight_scale="side"` is ours: each softmax runs over the rows of its own side and c
    is their number, a mean of 1 on each side of each group, so that all modes carry the same total weight. Inside a
    side both have the same ratios. Rows with a_i = 0 have weight 0, in every mode. Binary rewards make `softmax` equal
    `none` at scale side.

    Args:
        rewards: R, shape (n,), finite.
        group_ids: (n,) hashables (prompt ids).
        mode: "none" (w = 1), "softmax" (without the log pi_old term) or "softmax_is" (as above).
        old_log_prob: log pi_old of each token, nats, shape (n, T); read by `softmax_is` only.
        response_mask: (n, T) in {0, 1}; read by `softmax_is` only. A row without tokens has log pi_old = 0.
        weight_cap: largest weight, in multiples of a side's mean, >= 1; what exceeds it goes to the side's other rows
            in proportion to their weights, so the mean stays 1. None: no cap.
        weight_temperature: divides R, > 0.
        old_log_prob_level: log pi_old(y_i) as "token_mean" (per-token geometric mean) or "sequence" (the sum over
            tokens, the paper's; it collapses onto one row when responses are long).
        weight_scale: "side" or "group", as above; mode "none" is 1 at both. "group" takes no cap.

    Returns:
        (n,), >= 0, no gradient.

    Raises:
        ValueError: shapes that disagree, non-finite rewards or unmasked log-probs (rows named), unknown mode, level or
            scale, a cap below 1 or with scale group, a temperature that is not positive, `softmax_is` without log-probs
            and mask.

    Reference:
        arXiv 2602.05946, Eq. 11 and 12 (scale group, level sequence).
    """
    if mode not in ("none", "softmax", "softmax_is"):
        raise ValueError(f"unknown mode={mode!r}; choose 'none', 'softmax' or 'softmax_is'")
    if weight_cap is not None and not weight_cap >= 1:
        raise ValueError(f"weight_cap={weight_cap} must be >= 1 (multiples of a side's mean weight), or None")
    if weight_scale not in ("side", "group"):
        raise ValueError(f"unknown weight_scale={weight_scale!r}; choose 'side' or 'group'")
    if weight_scale == "group" and weight_cap is not None:
        raise ValueError(
            f"weight_cap={weight_cap} with weight_scale='group': a cap is in multiples of a side's mean weight, which "
            "only weight_scale='side' sets to 1; drop the cap, or use 'side'"
        )
    if not 0 < weight_temperature < math.inf:
        raise ValueError(f"weight_temperature={weight_temperature} must be positive and finite")
    values, group, groups = _encode(rewards, group_ids)
    centred, _ = _centre(values, group, groups)
    on_side = centred != 0
    result = torch.zeros_like(values)
    if mode == "none":
        result[on_side] = 1.0
        return result.to(_result_dtype(rewards))

    # Group weights, arXiv 2602.05946, Eq. 11 (a_i > 0) and 12 (a_i < 0).
    surprise = torch.zeros_like(values)
    if mode == "softmax_is":
        surprise = -_sequence_log_prob(old_log_prob, response_mask, old_log_prob_level, len(values)).to(values)
    if weight_scale == "group":
        for sign in (1.0, -1.0):
            share = _softmax_by(group, groups, sign * values / weight_temperature + surprise)
            result = torch.where(centred.sign() == sign, share, result)
        return result.to(_result_dtype(rewards))
    score = centred.sign() * values / weight_temperature + surprise
    side = 2 * group + (centred < 0)
    result[on_side] = _capped_softmax(score[on_side], side[on_side], 2 * groups, weight_cap)
    return result.to(_result_dtype(rewards))


def _capped_softmax(score: torch.Tensor, side: torch.Tensor, sides: int, cap: float | None) -> torch.Tensor:
    """Softmax of each side times its row count, min(cap, c w) with c such that the mean stays 1. In log space."""
    weight = torch.zeros_like(score)
    mass = _sum_by(side, sides, torch.ones_like(score))
    rows = torch.arange(len(score), device=score.device)
    while len(rows):  # each pass caps at least one row, or is the last; rows and sides without excess are done
        share = _softmax_by(side[rows], sides, score[rows])
        weight[rows] = mass[side[rows]] * share
        if cap is None:
            break
        over = weight[rows] > cap
        weight[rows[over]] = cap
        mass = (mass - cap * _sum_by(side[rows], sides, over.to(score.dtype))).clamp(min=0)
        excess = torch.zeros(sides, dtype=torch.bool, device=score.device)
        excess[side[rows[over]]] = True
        rows = rows[~over & excess[side[rows]]]
    return weight


def _softmax_by(index: torch.Tensor, size: int, score: torch.Tensor) -> torch.Tensor:
    largest = torch.full((size,), -math.inf, dtype=score.dtype, device=score.device)
    largest = largest.scatter_reduce(0, index, score, "amax")
    shifted = (score - largest[index]).exp()
    return shifted / _sum_by(index, size, shifted)[index]


def _sequence_log_prob(
    old_log_prob: torch.Tensor | None, response_mask: torch.Tensor | None, level: str, rows: int
) -> torch.Tensor:
    if level not in ("token_mean", "sequence"):
        raise ValueError(f"unknown old_log_prob_level={level!r}; choose 'token_mean' or 'sequence'")
    if old_log_prob is None or response_mask is None:
        missing = "old_log_prob" if old_log_prob is None else "response_mask"
        raise ValueError(f"{missing}=None with mode='softmax_is': pass it, or use mode='softmax'")
    if old_log_prob.dim() != 2 or old_log_prob.shape != response_mask.shape or len(old_log_prob) != rows:
        raise ValueError(
            f"old_log_prob {tuple(old_log_prob.shape)} and response_mask {tuple(response_mask.shape)} must both be "
            f"(n, T), with n = {rows} as in rewards"
        )
    mask = response_mask.bool()
    total = torch.where(mask, old_log_prob.detach(), 0.0).sum(dim=-1, dtype=torch.float64)
    _require_finite("old_log_prob", total)
    return total if level == "sequence" else total / mask.sum(dim=-1).clamp(min=1)


def _centre(values: torch.Tensor, group: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """R - mean per row, exactly 0 where it is rounding, and the rows of each group."""
    count = torch.bincount(group, minlength=groups)
    size = _sum_by(group, groups, values.abs())
    centred = values - (_sum_by(group, groups, values) / count)[group]
    # The mean's rounding error is below this. Without it a flat group is not exactly 0, and the side of a row at its
    # group's mean depends on the rows' order.
    rounding = torch.finfo(values.dtype).eps * size
    return torch.where(centred.abs() <= rounding[group], 0.0, centred), count


def _sum_by(index: torch.Tensor, size: int, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)


def _encode(rewards: torch.Tensor, group_ids: GroupIds) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rewards in float64, each row's group as an index, and the number of groups."""
    values = torch.as_tensor(rewards).detach().double()
    shape = tuple(group_ids.shape) if isinstance(group_ids, torch.Tensor | np.ndarray) else (len(group_ids),)
    if values.dim() != 1 or tuple(values.shape) != shape:
        raise ValueError(f"rewards {tuple(values.shape)} and group_ids {shape} must both have shape (n,)")
    _require_finite("rewards", values)
    if isinstance(group_ids, np.ndarray) and group_ids.dtype.kind in "iub":
        group_ids = torch.from_numpy(group_ids.astype(np.int64))
    if isinstance(group_ids, torch.Tensor):
        unique, index = torch.unique(group_ids, return_inverse=True)
        return values, index.to(values.device), len(unique)
    ids: Any = group_ids.tolist() if isinstance(group_ids, np.ndarray) else group_ids
    try:
        codes = {group_id: code for code, group_id in enumerate(dict.fromkeys(ids))}
    except TypeError as error:
        raise ValueError(f"group_ids must be hashable: {error}; pass strings or integers") from None
    if any(isinstance(group_id, torch.Tensor) for group_id in codes):
        raise ValueError(
            "group_ids is a sequence of tensors, which never equal each other as keys; pass one tensor (n,)"
        )
    encoded = np.fromiter(map(codes.__getitem__, ids), dtype=np.int64, count=len(values))
    return values, torch.from_numpy(encoded).to(values.device), len(codes)


def _require_finite(argument: str, values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        rows = (~torch.isfinite(values)).nonzero().flatten().tolist()
        raise ValueError(
            f"{argument} is not finite in {len(rows)} rows, the first of them {rows[:8]}; fix or drop them"
        )


def _result_dtype(rewards: torch.Tensor) -> torch.dtype:
    return torch.float64 if torch.as_tensor(rewards).dtype == torch.float64 else torch.float32
