"""What a training step logs of f-GRPO: each metric's sum, made in the workers, beside its quotient, made on the driver.

Names, units and healthy ranges are in metrics.yaml; preference rows' metrics are in preference_metrics.py.
"""

import math
from typing import Any

import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.host.contract import PREFIX, SUMS
from fgrpo_plugin.host.preference_metrics import Means, preference_quotients, row_reward

_BLOCK_ON_CPU, _BLOCK = 2**16, 2**22  # tokens; a device wants fewer and larger calls


def divide_sums(metrics: dict, settings: FDivergenceConfig, *, lam: float, compare_rollout: bool) -> dict[str, float]:
    """Turn the workers' sums into means; the sums are removed from ``metrics``.

    The host averages what a mini-batch's micro-batches report with equal weight. A ratio of two such averages is the
    ratio of the two totals, whatever the sizes of the micro-batches. Several mini-batches are averaged once more, so
    there the ratio is one of totals only where each has as many micro-batches as the others.

    Args:
        metrics: the step's metrics after the host's reduction.
        settings: for the divergence whose estimates are reported, and the scales of both halves.
        lam: lambda of the step.
        compare_rollout: report the difference between actor and rollout probabilities (meaningless once rows have
            been trained on, that is with several epochs).

    Raises:
        RuntimeError: the workers reported no sums of ours: another loss has run.
    """
    sums = {name.removeprefix(SUMS): metrics.pop(name) for name in list(metrics) if name.startswith(SUMS)}
    if not sums:
        raise RuntimeError(
            "the actor was updated by another loss than 'f_grpo' or 'f_hal' (its metrics are missing); "
            "remove what replaces actor.policy_loss.loss_mode or the worker's loss function."
        )
    mean = Means(sums)
    offset = settings.build_divergence().estimate_offset
    means = _rewards(mean, offset) | _distances(mean) | _slopes(mean, settings, lam)
    if "desirable_rows" in sums:
        means |= preference_quotients(mean, offset)
    if compare_rollout:
        means |= _rollout_difference(sums)
    return {name: value for name, value in means.items() if math.isfinite(value)}


def on_policy_sums(
    reward: torch.Tensor,
    clipped: torch.Tensor,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    divergence: Divergence,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Sums over this micro-batch's counted rows, and how many they are, on each side."""
    counted = mask.any(dim=-1)
    reward, clipped = row_reward(reward, clipped, mask)
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


def _rewards(mean: Means, offset: float) -> dict[str, float]:
    """Implicit rewards of each side, and the divergence that they estimate."""
    aligned, unaligned = mean("aligned_reward", "aligned_rows"), mean("unaligned_reward", "unaligned_rows")
    estimate = mean("aligned_link", "aligned_weight") - mean("unaligned_conjugate", "unaligned_weight")
    return {
        PREFIX + "implicit_reward": mean("reward", "rows"),
        PREFIX + "implicit_reward_aligned": aligned,
        PREFIX + "implicit_reward_unaligned": unaligned,
        PREFIX + "implicit_reward_margin": aligned - unaligned,
        PREFIX + "divergence_estimate": estimate + offset,
        PREFIX + "clipped_share": mean("clipped", "rows"),
    }


def units_of(settings: Any, mask: torch.Tensor) -> torch.Tensor:
    """What a row counts in its half's denominator, (n,): its tokens at level token, else 1 where it has any."""
    return mask.sum(dim=-1) if settings.level == "token" else mask.any(dim=-1)


def _slopes(mean: Means, settings: FDivergenceConfig, lam: float) -> dict[str, float]:
    """The on-policy loss, and of each half of the minimised loss sum |dL/dr| (beta + gamma).

    Lambda, scales and denominators are in it.
    """
    assert settings.gamma is not None
    s_all, s_on = settings.scales()

    def half(coefficient: float, gamma: float, *sides: tuple[str, str]) -> float:
        if not coefficient:
            return 0.0
        found = [mean(slope, units) for slope, units in sides if mean.sums[units]]  # a side without rows pulls nothing
        return coefficient * (settings.beta + gamma) * sum(found)

    on_policy = half((1 - lam) * s_all * s_on, settings.gamma, ("slope", "loss_units"))
    sides = [(f"{side}_slope", f"{side}_units") for side in ("desirable", "undesirable")]
    preference = half(lam * s_all, settings.preference_gamma, *sides)
    both = on_policy + preference
    share = 1.0 - lam if lam in (0, 1) else on_policy / both if both else math.nan
    return {
        PREFIX + "on_policy_loss": mean("loss", "loss_units"),
        PREFIX + "on_policy_slope": on_policy,
        PREFIX + "preference_slope": preference,
        PREFIX + "on_policy_slope_share": share,
    }


def token_sums(
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


def _distances(mean: Means) -> dict[str, float]:
    """How far the policy is from the reference, nats a token."""
    return {PREFIX + "reference_gap": mean("reference_gap", "tokens")}


def _rollout_difference(sums: dict[str, float]) -> dict[str, float]:
    """The host's names for its own stale-weight check, whose forward pass f-GRPO saves."""
    tokens = sums["compared_tokens"]
    if not tokens:
        return {}

    def mean(name: str) -> float:
        return float(sums[name] / tokens)

    difference = mean("difference")
    covariance = mean("product") - mean("actor") * mean("rollout")
    spread = math.sqrt(
        max(mean("actor_squared") - mean("actor") ** 2, 0.0) * max(mean("rollout_squared") - mean("rollout") ** 2, 0.0)
    )
    return {
        PREFIX + "rollout_gap": mean("rollout_gap"),
        "training/rollout_probs_diff_mean": difference,
        "training/rollout_probs_diff_std": math.sqrt(max(mean("difference_squared") - difference**2, 0.0)),
        "training/rollout_actor_probs_pearson_corr": covariance / spread if spread > 0 else math.nan,
    }


def row_metrics(
    advantage: torch.Tensor, weight: torch.Tensor, counted: torch.Tensor, settings: Any
) -> dict[str, float]:
    """Shares that the driver alone can say: it has all rows of the update.

    Args:
        advantage: (n,) a_i.
        weight: (n,) w_i.
        counted: (n,) bool, rows with a token that verl has not added to fill a mini-batch.
        settings: FDivergenceConfig; `weight_cap` is read.
    """
    rows = max(int(counted.sum()), 1)
    used = counted & (advantage != 0)
    weights = weight[used].double()
    capped = 0.0
    if settings.weight_cap is not None and len(weights):
        capped = (weights >= settings.weight_cap * (1 - 1e-6)).double().mean().item()
    # 0 where no row has a weight: with weights of the whole group a row at the mean may take all of it.
    size = weights.sum().square() / weights.square().sum() / len(weights) if weights.any() else torch.tensor(0.0)
    return {
        PREFIX + "zero_advantage_share": (counted & (advantage == 0)).sum().item() / rows,
        PREFIX + "aligned_share": (counted & (advantage > 0)).sum().item() / rows,
        PREFIX + "weight_effective_sample_share": float(size),
        PREFIX + "weight_capped_share": capped,
    }
