"""The policy loss ``f_grpo`` in verl's registry: what runs in a worker for one micro-batch.

Everything that concerns a group or a whole mini-batch (advantage, weight, denominator) was computed on the driver
(trainer.py) and comes with the rows, so the result does not depend on how rows are spread over ranks and micro-batches.
"""

from typing import Any

import torch

from fgrpo_plugin.losses import clip_implicit_reward, f_grpo_loss, implicit_reward

PREFIX = "actor/f_divergence/"
ROW_FIELDS = ("f_divergence_advantage", "f_divergence_weight", "f_divergence_count", "f_divergence_fresh")
"""One number a row, attached by the driver: a_i, w_i, the denominator, and 1 in the first mini-batch of the update."""


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
    reward = implicit_reward(
        log_prob,
        ref_log_prob,
        response_mask,
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
        response_mask=response_mask,
        denominator=f_divergence_count[0],
    )
    scale = s_all * s_on * config.global_batch_info.get("dp_size", 1)
    with torch.no_grad():
        metrics = {
            **_reward_sums(reward, clipped, response_mask, f_divergence_advantage, divergence),
            **_rollout_difference_sums(log_prob, old_log_prob, response_mask, f_divergence_fresh),
        }
    return scale * loss, metrics


f_grpo_policy_loss.batch_fields = ("ref_log_prob", *ROW_FIELDS)  # type: ignore[attr-defined]


def _old_log_prob(settings: Any, log_prob: torch.Tensor, recomputed: torch.Tensor) -> torch.Tensor | None:
    if settings.gamma == 0:
        return None
    return recomputed if settings.old_log_prob == "recomputed" else log_prob.detach()


def _reward_sums(reward, clipped, response_mask, advantage, divergence) -> dict[str, float]:
    """Sums over this micro-batch's counted rows, and how many they are, on each side."""
    mask = response_mask.bool()
    counted = mask.any(dim=-1)
    if reward.dim() == 2:  # one reward a token: a row is described by its mean
        length = mask.sum(dim=-1).clamp(min=1)
        clipped = (clipped & mask).any(dim=-1)
        reward_of_row = (reward * mask).sum(dim=-1) / length
    else:
        reward_of_row = reward
    above, below = counted & (advantage > 0), counted & (advantage < 0)
    link = divergence.link(reward_of_row)
    conjugate = divergence.conjugate_of_link(reward_of_row)
    return {
        PREFIX + "sums/rows": counted.sum().item(),
        PREFIX + "sums/clipped": (clipped & counted).sum().item(),
        PREFIX + "sums/aligned_rows": above.sum().item(),
        PREFIX + "sums/unaligned_rows": below.sum().item(),
        PREFIX + "sums/reward": torch.where(counted, reward_of_row, 0.0).sum().item(),
        PREFIX + "sums/aligned_reward": torch.where(above, reward_of_row, 0.0).sum().item(),
        PREFIX + "sums/unaligned_reward": torch.where(below, reward_of_row, 0.0).sum().item(),
        PREFIX + "sums/aligned_link": torch.where(above, link, 0.0).sum().item(),
        PREFIX + "sums/unaligned_conjugate": torch.where(below, conjugate, 0.0).sum().item(),
    }


def _rollout_difference_sums(log_prob, rollout_log_prob, response_mask, fresh) -> dict[str, float]:
    """Moments of actor and rollout probabilities on rows that the actor has not yet been trained on."""
    mask = response_mask.bool() & (fresh > 0).unsqueeze(-1)
    actor = torch.where(mask, log_prob.double(), 0.0).exp() * mask
    rollout = torch.where(mask, rollout_log_prob.double(), 0.0).exp() * mask
    difference = (actor - rollout).abs()
    sums = {
        "tokens": mask,
        "difference": difference,
        "difference_squared": difference.square(),
        "actor": actor,
        "actor_squared": actor.square(),
        "rollout": rollout,
        "rollout_squared": rollout.square(),
        "product": actor * rollout,
    }
    return {PREFIX + "sums/probs/" + name: values.sum().item() for name, values in sums.items()}
