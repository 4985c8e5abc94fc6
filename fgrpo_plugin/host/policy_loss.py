"""The policy losses ``f_grpo`` and ``f_hal`` in verl's registry: what runs in a worker for one micro-batch.

Everything that concerns a group or a whole mini-batch (advantage, weight, denominator, lambda) was computed on the
driver (trainer.py) and comes with the rows, so the result does not depend on how rows are spread over ranks and
micro-batches.
"""

from typing import Any, NamedTuple

import torch

from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.host.metric_table import PREFIX
from fgrpo_plugin.losses import (
    clip_implicit_reward,
    f_grpo_loss,
    f_hal_loss,
    fdo_loss,
    fdo_row_losses,
    implicit_reward,
    row_slopes,
)

SUMS = PREFIX + "sums/"
ROW_FIELDS = ("f_divergence_advantage", "f_divergence_weight", "f_divergence_count", "f_divergence_fresh")
"""One number a row, attached by the driver: a_i, w_i, the denominator, and 1 in the first mini-batch of the update."""
PREFERENCE_FIELDS = ("f_divergence_side", "f_divergence_tokens", "f_divergence_lam")
"""Further ones of f-HAL: +1 for D+, -1 for D- and 0 for on-policy rows, a preference row's response tokens, lambda."""
_DISTANCES = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
DISTANCE_EDGES = (*(-edge for edge in reversed(_DISTANCES)), 0.0, *_DISTANCES)
"""nats a sequence: bins in which log pi_theta - log pi_ref of preference rows is counted, for its tails."""

_BLOCK_ON_CPU, _BLOCK = 2**16, 2**22  # tokens; a device wants fewer and larger calls


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

POLICY_LOSSES = {"f_grpo": f_grpo_policy_loss, "f_hal": f_hal_policy_loss}
"""loss_mode -> what verl's registry holds under that name."""


class _Rows(NamedTuple):
    """What both halves read of n rows: log-probs in nats and mask (n, T), denominators (n,)."""

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
    moved = implicit_reward(
        log_prob,
        ref_log_prob,
        mask,
        settings.beta,
        old_log_prob=old_log_prob,
        gamma=settings.gamma,
        level=settings.level,
    )
    denominator = count[0] if len(count) else 1.0
    with _differentiable(moved):
        reward, clipped = clip_implicit_reward(moved, divergence, settings.implicit_reward_clip)
        loss = f_grpo_loss(reward, advantage, divergence, weight, response_mask=mask, denominator=denominator)
    with torch.no_grad():
        sums = _sums(reward, clipped, advantage, weight, divergence, mask)
        sums |= _token_sums(log_prob, ref_log_prob, rollout, mask, fresh > 0)
        sums["loss_units"] = _units(settings, mask)
        sums["loss"] = loss * denominator
        sums["slope"] = row_slopes(loss, moved) * denominator
    return settings.scales()[1] * loss, sums


def _differentiable(reward: torch.Tensor) -> torch.enable_grad:
    """Slopes of the loss are wanted where verl evaluates it without gradient, too."""
    if not reward.requires_grad:
        reward.requires_grad_()
    return torch.enable_grad()


def _preference(rows: _Rows, desirable: torch.Tensor, settings: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L_FDO, and sums over its rows on each side."""
    divergence = settings.build_divergence()
    log_prob, ref_log_prob, _, mask, count = rows
    gamma = settings.preference_gamma
    moved = implicit_reward(
        log_prob,
        ref_log_prob,
        mask,
        settings.beta,
        old_log_prob=log_prob.detach() if gamma else None,
        gamma=gamma,
        level=settings.level,
    )
    # A side that this micro-batch lacks has no rows to divide.
    denominators = [count[side][0] if bool(side.any()) else 1.0 for side in (desirable, ~desirable)]
    with _differentiable(moved):
        reward, clipped = clip_implicit_reward(moved, divergence, settings.implicit_reward_clip)
        loss = fdo_loss(reward, desirable, divergence, response_mask=mask, denominator=denominators)
    with torch.no_grad():
        sums = _preference_sums(reward, clipped, desirable, divergence, log_prob, ref_log_prob, mask)
        losses, units = fdo_row_losses(reward, desirable, divergence, response_mask=mask), _units(settings, mask)
        slopes, sides = row_slopes(loss, moved), (desirable, ~desirable)
        for name, side, denominator in zip(("desirable", "undesirable"), sides, denominators, strict=True):
            sums |= {
                f"{name}_loss": losses * side,
                f"{name}_slope": slopes * side * denominator,
                f"{name}_units": units * side,
            }
    return loss, sums


def _sums(
    reward: torch.Tensor,
    clipped: torch.Tensor,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    divergence: Divergence,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Sums over this micro-batch's counted rows, and how many they are, on each side."""
    counted = mask.any(dim=-1)
    reward, clipped = _row_reward(reward, clipped, mask)
    above, below = counted & (advantage > 0), counted & (advantage < 0)
    return {
        "rows": counted,
        "clipped": clipped & counted,
        "aligned_rows": above,
        "unaligned_rows": below,
        "reward": torch.where(counted, reward, 0.0),
        "aligned_reward": torch.where(above, reward, 0.0),
        "unaligned_reward": torch.where(below, reward, 0.0),
        "aligned_weight": torch.where(above, weight, 0.0),
        "unaligned_weight": torch.where(below, weight, 0.0),
        "aligned_link": torch.where(above, weight * divergence.link(reward), 0.0),
        "unaligned_conjugate": torch.where(below, weight * divergence.conjugate_of_link(reward), 0.0),
    }


def _units(settings: Any, mask: torch.Tensor) -> torch.Tensor:
    """What a row counts in its half's denominator, (n,): its tokens at level token, else 1 where it has any."""
    return mask.sum(dim=-1) if settings.level == "token" else mask.any(dim=-1)


def _row_reward(reward: torch.Tensor, clipped: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reward and clip flag of each row, (n,); at one reward a token a row is described by its mean."""
    if reward.dim() == 1:
        return reward, clipped
    return (torch.where(mask, reward, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1), (clipped & mask).any(dim=-1))


def _preference_sums(
    reward: torch.Tensor,
    clipped: torch.Tensor,
    desirable: torch.Tensor,
    divergence: Divergence,
    log_prob: torch.Tensor,
    ref_log_prob: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Sums over this micro-batch's preference rows on each side; names are the same in every micro-batch."""
    counted = mask.any(dim=-1)
    reward, clipped = _row_reward(reward, clipped, mask)
    distance = torch.where(mask, log_prob.float() - ref_log_prob, 0.0).sum(dim=-1)
    place = torch.bucketize(distance, torch.tensor(DISTANCE_EDGES, device=distance.device))
    sums = {"preference_clipped": clipped & counted}
    for name, side, term, value in (
        ("desirable", counted & desirable, "link", divergence.link(reward)),
        ("undesirable", counted & ~desirable, "conjugate", divergence.conjugate_of_link(reward)),
    ):
        sums |= {
            f"{name}_rows": side,
            f"{name}_reward": torch.where(side, reward, 0.0),
            f"{name}_{term}": torch.where(side, value, 0.0),
            f"{name}_right": side & ((reward > 0) if name == "desirable" else (reward < 0)),
            f"{name}_distance": torch.where(side, distance, 0.0),
        }
        for edge in range(len(DISTANCE_EDGES) + 1):
            sums[f"{name}_distance_bin{edge}"] = side & (place == edge)
    return sums


def _token_sums(
    log_prob: torch.Tensor, ref_log_prob: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor, fresh: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Distance from the reference, and from the rollout engine on rows that the actor has not yet been trained on.

    A block of rows at a time, so that what lies between stays in the cache and is soon freed.
    """
    size = max(1, (_BLOCK_ON_CPU if log_prob.device.type == "cpu" else _BLOCK) // max(1, mask.shape[-1]))
    totals: dict[str, torch.Tensor] = {}
    for block in zip(*(x.split(size) for x in (log_prob, ref_log_prob, rollout, mask, fresh)), strict=True):
        for name, value in _block_sums(*block).items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


def _block_sums(
    log_prob: torch.Tensor, ref_log_prob: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor, fresh: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The sums of one block: log-probs in nats and mask (n, T), fresh (n,) bool -> name -> float64 scalar."""
    compared = mask & fresh.unsqueeze(-1)
    reference_gap = torch.where(mask, log_prob.float() - ref_log_prob, 0.0).abs_()
    actor, engine = (torch.where(compared, values, 0.0).float() for values in (log_prob, rollout))
    rollout_gap = (actor - engine).abs_()
    # p - 1 in place of p: it is 0 where masked, and small where p is near 1, where a correlation loses its digits.
    actor.expm1_()
    engine.expm1_()
    difference = actor - engine
    sums = {
        "tokens": mask,
        "reference_gap": reference_gap,
        "compared_tokens": compared,
        "rollout_gap": rollout_gap,
        "difference": difference.abs(),
        "difference_squared": difference.square(),
        "actor": actor,
        "actor_squared": actor.square(),
        "rollout": engine,
        "rollout_squared": engine.square(),
        "product": actor * engine,
    }
    return {name: values.sum(dim=-1).sum(dtype=torch.float64) for name, values in sums.items()}


def _totals(parts: dict[str, torch.Tensor]) -> dict[str, float]:
    """One transfer from the device for all of them."""
    totals = torch.stack([values.sum(dtype=torch.float64) for values in parts.values()]).tolist()
    return {SUMS + name: total for name, total in zip(parts, totals, strict=True)}
