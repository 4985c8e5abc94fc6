"""The policy losses ``f_grpo`` and ``f_hal`` in verl's registry: what runs in a worker for one micro-batch.

Everything that concerns a group or a whole mini-batch (advantage, weight, denominator, lambda) was computed on the
driver (driver/rows.py, driver/joining.py) and comes with the rows, so the result does not depend on how rows are spread
over ranks and micro-batches.
"""

from typing import Any, NamedTuple

import torch

from fgrpo_plugin.host.contract import F_GRPO, F_HAL, PREFERENCE_FIELDS, ROW_FIELDS, SUMS
from fgrpo_plugin.host.metrics import on_policy_sums, token_sums, units_of
from fgrpo_plugin.host.preference_metrics import preference_sums, side_loss_sums
from fgrpo_plugin.losses import f_hal_loss, row_slopes
from fgrpo_plugin.losses.checks import LOG_PROBS, compute_dtype, finite_extremes
from fgrpo_plugin.losses.f_grpo import row_magnitudes
from fgrpo_plugin.losses.reward import at_level, clip_between, clip_range, masked_log_ratio, reward_of_ratios
from fgrpo_plugin.losses.sides import side_losses_inside


def f_grpo_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
    *,
    ref_log_prob: torch.Tensor,
    f_divergence_advantage: torch.Tensor,
    f_divergence_weight: torch.Tensor,
    f_divergence_count: torch.Tensor,
    f_divergence_fresh: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """s_all * s_on * L_fGRPO of this micro-batch's rows over the global mini-batch's denominator.

    Args:
        old_log_prob: (n, T) log-probs of pi_old, nats: the rollout engine's where the host does not recompute them.
        log_prob: (n, T) log-probs of pi_theta, nats; gradient flows.
        advantages: (n, T); not read, ``f_divergence_advantage`` is the same number once a row.
        response_mask: (n, T) in {0, 1}.
        loss_agg_mode: not read; each half is divided by its own count.
        config: the host's actor section; ``policy_loss.f_divergence`` and ``global_batch_info`` are read.
        rollout_is_weights: not read; the validation refuses the setting that makes them.
        ref_log_prob: (n, T) log-probs of pi_ref, nats.
        f_divergence_advantage: (n,) a_i.
        f_divergence_weight: (n,) w_i.
        f_divergence_count: (n,) denominator of the global mini-batch, the same number in every row.
        f_divergence_fresh: (n,) 1 where the actor still is the policy that the rollouts were sampled from.
        kwargs: whatever else the host passes; not used.

    Returns:
        The scalar loss, times the data-parallel size because the engines average over ranks, and metrics: sums and
        counts, divided once on the driver.
    """
    settings = config.policy_loss.f_divergence
    rows = _Rows(log_prob, ref_log_prob, old_log_prob, response_mask.bool(), f_divergence_count)
    magnitude = row_magnitudes(f_divergence_advantage, f_divergence_weight, compute_dtype(log_prob))
    found = _evaluate(rows, f_divergence_advantage > 0, magnitude, settings)
    with torch.no_grad():
        sums = _on_policy_sums(
            found, rows, rows.mask, f_divergence_advantage, f_divergence_weight, f_divergence_fresh, settings
        )
    return _scale(config) * (settings.scales()[1] * found.shares.sum()), _totals(sums)


f_grpo_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS)  # type: ignore[attr-defined]


def f_hal_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
    *,
    ref_log_prob: torch.Tensor,
    f_divergence_advantage: torch.Tensor,
    f_divergence_weight: torch.Tensor,
    f_divergence_count: torch.Tensor,
    f_divergence_fresh: torch.Tensor,
    f_divergence_side: torch.Tensor,
    f_divergence_tokens: torch.Tensor,
    f_divergence_lam: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """s_all * (lambda * L_FDO + (1 - lambda) * s_on * L_fGRPO) of this micro-batch's rows.

    Preference rows reach a worker among the on-policy rows, with a response_mask of 0.

    Args:
        f_divergence_count: (n,) denominator of the global mini-batch: of the on-policy rows, of the D+ or of the D-
            rows, whichever the row belongs to.
        f_divergence_side: (n,) +1 for D+, -1 for D-, 0 for an on-policy row.
        f_divergence_tokens: (n,) response tokens of a preference row; not read of others.
        f_divergence_lam: (n,) lambda of this step, the same number in every row.
        others: as `f_grpo_policy_loss`.

    Returns:
        As `f_grpo_policy_loss`.
    """
    settings = config.policy_loss.f_divergence
    positions = torch.arange(response_mask.shape[-1], device=response_mask.device)
    on_policy_mask = response_mask.bool()
    preferred, desirable = f_divergence_side != 0, f_divergence_side > 0
    preference_mask = (positions < f_divergence_tokens.unsqueeze(-1)) & preferred.unsqueeze(-1)
    mask = torch.where(preferred.unsqueeze(-1), preference_mask, on_policy_mask)
    rows = _Rows(log_prob, ref_log_prob, old_log_prob, mask, f_divergence_count)
    # A row of L_FDO is one of L_fGRPO of magnitude 1. Without preference rows all is f-GRPO's, to the last bit.
    magnitude = row_magnitudes(f_divergence_advantage, f_divergence_weight, compute_dtype(log_prob))
    magnitude = torch.where(preferred, 1.0, magnitude)
    aligned = torch.where(preferred, desirable, f_divergence_advantage > 0)
    found = _evaluate(rows, aligned, magnitude, settings, preferred)
    with _differentiable(found.unclipped):
        on_policy = settings.scales()[1] * torch.where(preferred, 0.0, found.shares).sum()
        preference = torch.where(preferred, found.shares, 0.0).sum()
        loss = _scale(config) * f_hal_loss(preference, on_policy, lam=f_divergence_lam[0])
    with torch.no_grad():
        numbers = (f_divergence_advantage, f_divergence_weight, f_divergence_fresh)
        sums = _on_policy_sums(found, rows, on_policy_mask & ~preferred.unsqueeze(-1), *numbers, settings)
        sums |= preference_sums(
            found.reward,
            found.clipped,
            desirable,
            settings.build_divergence(),
            log_prob,
            ref_log_prob,
            preference_mask,
        )
        sides = (desirable, preferred & ~desirable)
        units = units_of(settings, preference_mask)
        sums |= side_loss_sums(found.losses, found.slopes * f_divergence_count, sides, units)
    return loss, _totals(sums)


f_hal_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS, *PREFERENCE_FIELDS)  # type: ignore[attr-defined]


POLICY_LOSSES = {F_GRPO: f_grpo_policy_loss, F_HAL: f_hal_policy_loss}
"""loss_mode -> what verl's registry holds under that name."""


class _Rows(NamedTuple):
    """Per-row tensors that both losses read: log-probs in nats and mask (n, T), denominators (n,)."""

    log_prob: torch.Tensor
    ref_log_prob: torch.Tensor
    rollout: torch.Tensor
    mask: torch.Tensor
    denominator: torch.Tensor


class _Evaluated(NamedTuple):
    """What `_evaluate` makes of them."""

    unclipped: torch.Tensor
    """r, (n,) or (n, T)."""
    reward: torch.Tensor
    """Clipped."""
    clipped: torch.Tensor
    """Where it was."""
    losses: torch.Tensor
    """(n,) of each row, not divided."""
    shares: torch.Tensor
    """(n,) divided by the row's denominator."""
    slopes: torch.Tensor
    """(n,) |d shares/dr|."""


def _scale(config: Any) -> float:
    """s_all, times the data-parallel size because the engines average over ranks."""
    return config.policy_loss.f_divergence.scales()[0] * config.global_batch_info["dp_size"]


def _evaluate(
    rows: _Rows, aligned: torch.Tensor, magnitude: torch.Tensor, settings: Any, preferred: torch.Tensor | None = None
) -> _Evaluated:
    """The losses of all rows, each of its own half; (n,) `preferred` says which are preference rows, None that none are"""
    policy = rows.log_prob.to(compute_dtype(rows.log_prob))
    ratio = at_level(masked_log_ratio(policy, rows.ref_log_prob, rows.mask), settings.level)
    tokens = rows.mask.sum(dim=-1)
    old_ratio, gamma = _old_ratio(rows, policy, ratio, settings, preferred)
    unclipped = reward_of_ratios(ratio, old_ratio, tokens, settings.beta, gamma, settings.level)
    extremes = finite_extremes(LOG_PROBS, unclipped, {"advantages or weights": magnitude})
    divergence = settings.build_divergence()
    counted = rows.mask if unclipped.dim() == 2 else tokens > 0
    with _differentiable(unclipped):
        reward, clipped = clip_between(unclipped, clip_range(divergence, settings.implicit_reward_clip), extremes)
        losses = magnitude * side_losses_inside(reward, aligned, divergence, counted)
        # Divided first: near the edge of a range two rows can be more than float32 holds.
        shares = losses / rows.denominator.clamp(min=1)
        slopes = row_slopes(shares.sum(), unclipped)
    return _Evaluated(unclipped, reward, clipped, losses, shares, slopes)


def _old_ratio(
    rows: _Rows, policy: torch.Tensor, ratio: torch.Tensor, settings: Any, preferred: torch.Tensor | None
) -> tuple[torch.Tensor | None, float | torch.Tensor]:
    """log(pi_theta / pi_old), at the level of `ratio`, and its gamma; (None, 0) where no row has one."""
    gamma, preference_gamma = settings.gamma, 0.0 if preferred is None else settings.preference_gamma
    if not gamma and not preference_gamma:
        return None, 0.0
    # pi_old is the policy itself, taken as constant: 0, with a gradient.
    itself = ratio - ratio.detach()
    old_ratio = itself
    if gamma and settings.old_log_prob == "recomputed":
        old_ratio = at_level(masked_log_ratio(policy, rows.rollout, rows.mask), settings.level)
    if preferred is None:
        return old_ratio, gamma
    preferred = preferred if ratio.dim() == 1 else preferred.unsqueeze(-1)
    each = torch.full_like(preferred, gamma, dtype=ratio.dtype).masked_fill_(preferred, preference_gamma)
    return torch.where(preferred, itself, old_ratio), each


def _on_policy_sums(
    found: _Evaluated,
    rows: _Rows,
    mask: torch.Tensor,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    fresh: torch.Tensor,
    settings: Any,
) -> dict[str, torch.Tensor]:
    """Sums over the on-policy rows; (n, T) `mask` says which tokens are theirs."""
    sums = on_policy_sums(found.reward, found.clipped, advantage, weight, settings.build_divergence(), mask)
    sums |= token_sums(rows.log_prob, rows.ref_log_prob, rows.rollout, mask, fresh > 0)
    units = units_of(settings, mask)
    own = units > 0
    losses, slopes = (torch.where(own, values, 0.0) for values in (found.losses, found.slopes * rows.denominator))
    return sums | {"loss_units": units, "loss": losses, "slope": slopes}


def _differentiable(reward: torch.Tensor) -> torch.enable_grad:
    """Make the reward a leaf where verl evaluates the loss without gradient, so that its slopes are there as well."""
    if not reward.requires_grad:
        reward.requires_grad_()
    return torch.enable_grad()


def _totals(parts: dict[str, torch.Tensor]) -> dict[str, float]:
    """One transfer from the device for all of them."""
    totals = torch.stack([values.sum(dtype=torch.float64) for values in parts.values()]).tolist()
    return {SUMS + name: total for name, total in zip(parts, totals, strict=True)}
