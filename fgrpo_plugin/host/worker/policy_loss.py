"""The policy losses ``f_grpo`` and ``f_hal`` in verl's registry: what runs in a worker for one micro-batch.

Everything that concerns a group or a whole mini-batch (advantage, weight, denominator, lambda) was computed on the
driver (driver/rows.py, driver/joining.py) and comes with the rows, so the result does not depend on how rows are
assigned to ranks and micro-batches.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch

from fgrpo_plugin.host.contract import F_GRPO, F_HAL, PREFERENCE_FIELDS, ROW_FIELDS, SUMS
from fgrpo_plugin.host.metrics import COMPARED, ON_POLICY_SUMS, compared_with_rollout, on_policy_sides
from fgrpo_plugin.host.preference_metrics import PREFERENCE_SUMS, preference_values
from fgrpo_plugin.host.worker.non_finite import remembered
from fgrpo_plugin.losses import f_hal_loss
from fgrpo_plugin.losses.checks import LOG_PROBS, compute_dtype, finite_extremes
from fgrpo_plugin.losses.f_grpo import row_magnitudes
from fgrpo_plugin.losses.reward import at_level, clip_between, clip_range, masked_log_ratio, reward_of_ratios
from fgrpo_plugin.losses.sides import side_losses_inside
from fgrpo_plugin.losses.slopes import differentiated_once


def _outside_inference_mode(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Run a loss outside inference mode, on copies of its tensors: inside it autograd gives no slopes."""

    @wraps(loss)
    def outside(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return loss(*args, **kwargs)
        with torch.inference_mode(False):
            return loss(*map(_copied, args), **{name: _copied(value) for name, value in kwargs.items()})

    return outside


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


@_outside_inference_mode
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
        old_log_prob: (n, T) log-probs of pi_old, nats: the rollout engine's where verl does not recompute them.
        log_prob: (n, T) log-probs of pi_theta, nats; gradient flows.
        advantages: (n, T); not read, ``f_divergence_advantage`` is the same number once a row.
        response_mask: (n, T) in {0, 1}.
        loss_agg_mode: not read; each half is divided by its own denominator.
        config: verl's actor section; ``policy_loss.f_divergence`` and ``global_batch_info`` are read.
        rollout_is_weights: not read; the validation refuses the setting that makes them.
        ref_log_prob: (n, T) log-probs of pi_ref, nats.
        f_divergence_advantage: (n,) a_i.
        f_divergence_weight: (n,) w_i.
        f_divergence_count: (n,) denominator of the global mini-batch, the same number in every row.
        f_divergence_fresh: (n,) 1 where the actor still is the policy that the rollouts were sampled from.
        kwargs: whatever else verl passes; not used.

    Returns:
        The scalar loss, times the data-parallel size because the engines average over ranks, and metrics: sums and
        counts, divided once on the driver.
    """
    rows = _Rows(
        log_prob=log_prob,
        ref_log_prob=ref_log_prob,
        rollout=old_log_prob,
        mask=response_mask.bool(),
        advantage=f_divergence_advantage,
        weight=f_divergence_weight,
        denominator=f_divergence_count,
        fresh=f_divergence_fresh,
    )
    return _policy_loss(rows, config)


f_grpo_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS)  # type: ignore[attr-defined]


@_outside_inference_mode
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
    preferred = f_divergence_side != 0
    positions = torch.arange(response_mask.shape[-1], device=response_mask.device)
    own = positions < f_divergence_tokens.unsqueeze(-1)
    rows = _Rows(
        log_prob=log_prob,
        ref_log_prob=ref_log_prob,
        rollout=old_log_prob,
        mask=torch.where(preferred.unsqueeze(-1), own, response_mask.bool()),
        advantage=f_divergence_advantage,
        weight=f_divergence_weight,
        denominator=f_divergence_count,
        fresh=f_divergence_fresh,
        preferences=_Preferences(preferred, f_divergence_side, f_divergence_lam[0]),
    )
    return _policy_loss(rows, config)


f_hal_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS, *PREFERENCE_FIELDS)  # type: ignore[attr-defined]


POLICY_LOSSES = {F_GRPO: remembered(f_grpo_policy_loss), F_HAL: remembered(f_hal_policy_loss)}
"""loss_mode -> what verl's registry holds under that name."""


class _Rows(NamedTuple):
    """A micro-batch: log-probs in nats and mask (n, T), the driver's numbers (n,)."""

    log_prob: torch.Tensor
    ref_log_prob: torch.Tensor
    rollout: torch.Tensor
    mask: torch.Tensor
    advantage: torch.Tensor
    weight: torch.Tensor
    denominator: torch.Tensor
    fresh: torch.Tensor
    preferences: "_Preferences | None" = None


class _Preferences(NamedTuple):
    """f-HAL's rows: which are preference rows, +1 for D+ and -1 for D- (both (n,)), and lambda, a scalar."""

    rows: torch.Tensor
    side: torch.Tensor
    lam: torch.Tensor


def _policy_loss(rows: _Rows, config: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of both halves, and the sums for the metrics; two waits for the device: is all finite, and the sums."""
    settings, dp_size = config.policy_loss.f_divergence, config.global_batch_info["dp_size"]
    s_all, s_on = settings.scales()
    divergence, per_token = settings.build_divergence(), settings.level == "token"
    preferences = rows.preferences

    policy = rows.log_prob.to(compute_dtype(rows.log_prob))
    token_ratio = masked_log_ratio(policy, rows.ref_log_prob, rows.mask)
    ratio = at_level(token_ratio, settings.level)
    old_ratio, gamma = _old_ratio(rows, policy, ratio, settings)
    tokens = rows.mask.sum(dim=-1, dtype=torch.int32)
    unclipped = reward_of_ratios(ratio, old_ratio, tokens, settings.beta, gamma, settings.level)

    magnitude = row_magnitudes(rows.advantage, rows.weight, unclipped.dtype)
    positive, counted = rows.advantage > 0, tokens > 0
    if preferences is not None:  # a row of L_FDO is one of L_fGRPO of magnitude 1
        magnitude = torch.where(preferences.rows, 1.0, magnitude)
        positive = torch.where(preferences.rows, preferences.side > 0, positive)
    extremes = finite_extremes(LOG_PROBS, unclipped, {"advantages or weights": magnitude})

    # With gradient also where verl evaluates the loss without, so that its slopes are there as well.
    with torch.enable_grad():
        leaf = unclipped.detach().requires_grad_()
        reward, clipped = clip_between(leaf, clip_range(divergence, settings.implicit_reward_clip), extremes)
        terms = side_losses_inside(reward, positive, divergence, rows.mask if per_token else counted)
        losses = magnitude * terms
        # Divided first: near the edge of a range two rows can be more than float32 holds.
        shares = losses / rows.denominator.clamp(min=1)
        if preferences is None:
            both = s_on * shares.sum()
        else:
            on_policy = s_on * torch.where(preferences.rows, 0.0, shares).sum()
            both = f_hal_loss(torch.where(preferences.rows, shares, 0.0).sum(), on_policy, preferences.lam)
        # Times the data-parallel size because the engines average over ranks.
        loss, slopes = differentiated_once((s_all * dp_size) * both, leaf, unclipped)

    with torch.no_grad():
        reward, clipped, slopes = _of_rows(reward, clipped, slopes, tokens)
        if per_token:  # the terms of the rows' own rewards, not the sums of their tokens'
            terms = side_losses_inside(reward, positive, divergence, counted)
        values = {
            "rows": counted,
            "clipped": clipped,
            "reward": reward,
            "weight": rows.weight,
            "term": terms,
            "weighted_term": rows.weight * terms,
            "loss": losses,
            "slope": slopes * rows.denominator / dp_size,
            "loss_units": tokens if per_token else counted,
            "tokens": tokens,
            "reference_gap": token_ratio.abs().sum(dim=-1),
            **dict(zip(COMPARED, compared_with_rollout(rows.log_prob, rows.rollout, rows.mask), strict=True)),
        }
        if preferences is None:
            return loss, _totals(ON_POLICY_SUMS, on_policy_sides(counted, rows.advantage, rows.fresh), values)
        sides = on_policy_sides(counted & ~preferences.rows, rows.advantage, rows.fresh)
        sides |= {"desirable_": counted & (preferences.side > 0), "undesirable_": counted & (preferences.side < 0)}
        distance = ratio.sum(dim=-1) if per_token else ratio
        values |= preference_values(reward, distance, preferences.side)
        return loss, _totals(ON_POLICY_SUMS | PREFERENCE_SUMS, sides, values)


def _old_ratio(
    rows: _Rows, policy: torch.Tensor, ratio: torch.Tensor, settings: Any
) -> tuple[torch.Tensor | None, float | torch.Tensor]:
    """log(pi_theta / pi_old), at the level of `ratio`, and its gamma; (None, 0) where no row has one."""
    gamma, preferences = settings.gamma, rows.preferences
    preference_gamma = 0.0 if preferences is None else settings.preference_gamma
    if not gamma and not preference_gamma:
        return None, 0.0
    # pi_old is the policy itself, taken as constant: 0, with a gradient.
    itself = ratio - ratio.detach()
    old_ratio = itself
    if gamma and settings.old_log_prob == "recomputed":
        old_ratio = at_level(masked_log_ratio(policy, rows.rollout, rows.mask), settings.level)
    if preferences is None:
        return old_ratio, gamma
    preferred = preferences.rows if ratio.dim() == 1 else preferences.rows.unsqueeze(-1)
    each = torch.full_like(preferred, gamma, dtype=ratio.dtype).masked_fill_(preferred, preference_gamma)
    return torch.where(preferred, itself, old_ratio), each


def _of_rows(
    reward: torch.Tensor, clipped: torch.Tensor | None, slopes: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reward, clip flag and |dL/dr| of each row, (n,); at one reward a token a row is described by its tokens' mean.

    A row without tokens has none, and is on no side.
    """
    if clipped is None:
        clipped = torch.zeros_like(tokens, dtype=torch.bool)
    if reward.dim() == 1:
        return reward, clipped, slopes.abs()
    if clipped.dim() == 2:
        clipped = clipped.any(dim=-1)
    return reward.sum(dim=-1) / tokens, clipped, slopes.abs().sum(dim=-1)


def _totals(
    wanted: Mapping[str, Sequence[str]], sides: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Add up the wanted values over the rows of their side; one transfer from the device for all of them.

    Args:
        wanted: side -> names of values.
        sides: side -> (n,) bool.
        values: name -> (n,).
    """
    # One table, by as few operations as there are dtypes.
    names = sorted(values, key=lambda name: str(values[name].dtype))
    blocks = [
        torch.stack([values[name] for name in block]).to(values["loss"].dtype)
        for _, block in itertools.groupby(names, key=lambda name: values[name].dtype)
    ]
    rows = torch.where(torch.stack(list(sides.values())).unsqueeze(1), torch.cat(blocks), 0.0)
    totals = rows.sum(dim=-1, dtype=torch.float64).tolist()
    of_side = {side: dict(zip(names, row, strict=True)) for side, row in zip(sides, totals, strict=True)}
    return {f"{SUMS}{side}{name}": of_side[side][name] for side in wanted for name in wanted[side]}
