"""The policy losses ``f_grpo`` and ``f_hal`` in verl's registry: what runs in a worker for one micro-batch.

Everything that concerns a group or a whole mini-batch (advantage, weight, denominator, lambda) was computed on the
driver (driver/rows.py, driver/joining.py) and comes with the rows, so the result does not depend on how rows are spread
over ranks and micro-batches.
"""

from typing import Any, NamedTuple

import torch

from fgrpo_plugin.host.contract import F_GRPO, F_HAL, PREFERENCE_FIELDS, ROW_FIELDS, SUMS
from fgrpo_plugin.host.metrics import loss_sums, on_policy_sums, token_sums, units_of
from fgrpo_plugin.host.preference_metrics import preference_sums, side_loss_sums
from fgrpo_plugin.losses import f_hal_loss, row_slopes
from fgrpo_plugin.losses.checks import LOG_PROBS, finite_extremes
from fgrpo_plugin.losses.f_grpo import row_magnitudes
from fgrpo_plugin.losses.reward import clip_between, clip_range, unchecked_reward
from fgrpo_plugin.losses.sides import side_losses_inside, side_mean, side_means


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
    loss, sums = _on_policy(rows, f_divergence_advantage, f_divergence_weight, f_divergence_fresh, settings)
    return _scale(config) * f_hal_loss(loss.new_zeros(()), loss, lam=0.0), _totals(sums)


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
    preferred = f_divergence_side != 0
    mask = torch.where(preferred.unsqueeze(-1), positions < f_divergence_tokens.unsqueeze(-1), response_mask.bool())
    rows = _Rows(log_prob, ref_log_prob, old_log_prob, mask, f_divergence_count)
    on, off = (~preferred).nonzero().flatten(), preferred.nonzero().flatten()
    # A micro-batch without preference rows is computed by the same operations as f-GRPO's, to the last bit.
    numbers = (f_divergence_advantage, f_divergence_weight, f_divergence_fresh)
    if len(off):
        numbers = tuple(values[on] for values in numbers)  # type: ignore[assignment]
    on_policy, sums = _on_policy(rows.take(on) if len(off) else rows, *numbers, settings)
    preference, preference_sums = _preference(rows.take(off), f_divergence_side[off] > 0, settings)
    return (
        _scale(config) * f_hal_loss(preference, on_policy, lam=float(f_divergence_lam[0])),
        _totals(sums | preference_sums),
    )


f_hal_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS, *PREFERENCE_FIELDS)  # type: ignore[attr-defined]


POLICY_LOSSES = {F_GRPO: f_grpo_policy_loss, F_HAL: f_hal_policy_loss}
"""loss_mode -> what verl's registry holds under that name."""


class _Rows(NamedTuple):
    """Per-row tensors that both losses read: log-probs in nats and mask (n, T), denominators (n,)."""

    log_prob: torch.Tensor
    ref_log_prob: torch.Tensor
    old_log_prob: torch.Tensor
    mask: torch.Tensor
    denominator: torch.Tensor

    def take(self, rows: torch.Tensor) -> "_Rows":
        return _Rows(*(values[rows] for values in self))


def _scale(config: Any) -> float:
    """s_all, times the data-parallel size because the engines average over ranks."""
    return config.policy_loss.f_divergence.scales()[0] * config.global_batch_info["dp_size"]


def _on_policy(
    rows: _Rows, advantage: torch.Tensor, weight: torch.Tensor, fresh: torch.Tensor, settings: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """s_on * L_fGRPO, and sums over its rows."""
    divergence = settings.build_divergence()
    log_prob, ref_log_prob, rollout, mask, count = rows
    old_log_prob = None
    if settings.gamma:
        old_log_prob = rollout if settings.old_log_prob == "recomputed" else log_prob.detach()
    unclipped = unchecked_reward(
        log_prob, ref_log_prob, mask, settings.beta, old_log_prob, settings.gamma, settings.level
    )
    magnitude = row_magnitudes(advantage, weight, unclipped.dtype)
    extremes = finite_extremes(LOG_PROBS, unclipped, {"advantages or weights": magnitude})
    denominator = count[0] if len(count) else 1.0
    counted = mask if unclipped.dim() == 2 else mask.any(dim=-1)
    with _differentiable(unclipped):
        reward, clipped = clip_between(unclipped, clip_range(divergence, settings.implicit_reward_clip), extremes)
        losses = magnitude * side_losses_inside(reward, advantage > 0, divergence, counted)
        loss = side_mean(losses, counted.sum(), denominator)
    with torch.no_grad():
        sums = on_policy_sums(reward, clipped, advantage, weight, divergence, mask)
        sums |= token_sums(log_prob, ref_log_prob, rollout, mask, fresh > 0)
        sums |= loss_sums(loss, unclipped, denominator, units_of(settings, mask))
    return settings.scales()[1] * loss, sums


def _differentiable(reward: torch.Tensor) -> torch.enable_grad:
    """Make the reward a leaf where verl evaluates the loss without gradient, so that its slopes are there as well."""
    if not reward.requires_grad:
        reward.requires_grad_()
    return torch.enable_grad()


def _preference(rows: _Rows, desirable: torch.Tensor, settings: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L_FDO, and sums over its rows on each side."""
    divergence = settings.build_divergence()
    log_prob, ref_log_prob, _, mask, count = rows
    gamma = settings.preference_gamma
    old_log_prob = log_prob.detach() if gamma else None
    unclipped = unchecked_reward(log_prob, ref_log_prob, mask, settings.beta, old_log_prob, gamma, settings.level)
    extremes = finite_extremes(LOG_PROBS, unclipped)
    # A side that this micro-batch lacks has no rows to divide.
    denominators = [count[side][0] if bool(side.any()) else 1.0 for side in (desirable, ~desirable)]
    counted = mask if unclipped.dim() == 2 else mask.any(dim=-1)
    with _differentiable(unclipped):
        reward, clipped = clip_between(unclipped, clip_range(divergence, settings.implicit_reward_clip), extremes)
        losses = side_losses_inside(reward, desirable, divergence, counted)
        loss = side_means(losses, desirable, counted, denominators)
    with torch.no_grad():
        sums = preference_sums(reward, clipped, desirable, divergence, log_prob, ref_log_prob, mask)
        sums |= side_loss_sums(losses, row_slopes(loss, unclipped), desirable, denominators, units_of(settings, mask))
    return loss, sums


def _totals(parts: dict[str, torch.Tensor]) -> dict[str, float]:
    """One transfer from the device for all of them."""
    totals = torch.stack([values.sum(dtype=torch.float64) for values in parts.values()]).tolist()
    return {SUMS + name: total for name, total in zip(parts, totals, strict=True)}
