"""The policy loss ``f_grpo`` in verl's registry: what runs in a worker for one micro-batch.

Everything that concerns a group or a whole mini-batch (advantage, weight, denominator) was computed on the driver
(trainer.py) and comes with the rows, so the result does not depend on how rows are spread over ranks and micro-batches.
"""

from typing import Any

import torch

from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.losses import clip_implicit_reward, f_grpo_loss, implicit_reward

PREFIX = "actor/f_divergence/"
SUMS = PREFIX + "sums/"
ROW_FIELDS = ("f_divergence_advantage", "f_divergence_weight", "f_divergence_count", "f_divergence_fresh")
"""One number a row, attached by the driver: a_i, w_i, the denominator, and 1 in the first mini-batch of the update."""

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
    divergence = settings.build_divergence()
    s_all, s_on = settings.scales()
    mask = response_mask.bool()
    reward = implicit_reward(
        log_prob,
        ref_log_prob,
        mask,
        settings.beta,
        old_log_prob=_old_log_prob(settings, log_prob, old_log_prob),
        gamma=settings.gamma,
        level=settings.level,
    )
    reward, clipped = clip_implicit_reward(reward, divergence, settings.implicit_reward_clip)
    loss = f_grpo_loss(
        reward,
        f_divergence_advantage,
        divergence,
        f_divergence_weight,
        response_mask=mask,
        denominator=f_divergence_count[0],
    )
    scale = s_all * s_on * config.global_batch_info.get("dp_size", 1)
    with torch.no_grad():
        metrics = _totals(
            _sums(reward, clipped, f_divergence_advantage, f_divergence_weight, divergence, mask)
            | _token_sums(log_prob, ref_log_prob, old_log_prob, mask, f_divergence_fresh > 0)
        )
    return scale * loss, metrics


f_grpo_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS)  # type: ignore[attr-defined]


def _old_log_prob(settings: Any, log_prob: torch.Tensor, recomputed: torch.Tensor) -> torch.Tensor | None:
    if settings.gamma == 0:
        return None
    return recomputed if settings.old_log_prob == "recomputed" else log_prob.detach()


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
    if reward.dim() == 2:  # one reward a token: a row is described by its mean
        reward = torch.where(mask, reward, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)
        clipped = (clipped & mask).any(dim=-1)
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
