"""What a training step logs of f-GRPO: which sums the workers make, and the quotients that the driver makes of them.

Names, units and healthy ranges are in metrics.yaml; preference rows' metrics are in preference_metrics.py, and what is
summed up is in worker/policy_loss.py.
"""

import math
from typing import Any

import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import PREFIX, SUMS
from fgrpo_plugin.host.preference_metrics import PREFERENCE_SUMS, Means, preference_quotients

_BLOCK_ON_CPU, _BLOCK = 2**16, 2**20  # tokens; a device wants fewer and larger calls
COMPARED = (
    "rollout_gap",
    "difference",
    "difference_squared",
    "actor",
    "actor_squared",
    "rollout",
    "rollout_squared",
    "product",
)
"""What `compared_with_rollout` gives of each row."""


def divide_sums(metrics: dict, settings: FDivergenceConfig, *, lam: float, compare_rollout: bool) -> dict[str, float]:
    """Turn the workers' sums into means; the sums are removed from ``metrics``.

    verl averages what a mini-batch's micro-batches report with equal weight. A ratio of two such averages is the
    ratio of the two totals, whatever the sizes of the micro-batches. Several mini-batches are averaged once more, so
    there the ratio is one of totals only where each has as many micro-batches as the others.

    Args:
        metrics: the step's metrics after verl's reduction.
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


ON_POLICY_SUMS = {
    "": ("rows", "clipped", "reward", "loss", "slope", "loss_units", "tokens", "reference_gap"),
    "aligned_": ("rows", "reward", "weight", "weighted_term"),
    "unaligned_": ("rows", "reward", "weight", "weighted_term"),
    "compared_": ("tokens", *COMPARED),
}
"""Side -> which values the workers add up over its rows; a sum is called by side and value, as `aligned_reward`."""


def on_policy_sides(counted: torch.Tensor, advantage: torch.Tensor, fresh: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sides of `ON_POLICY_SUMS`, (n,) bool each.

    Args:
        counted: (n,) bool, on-policy rows with a token.
        advantage: (n,) a_i.
        fresh: (n,) 1 where the actor still is the policy that the rollouts were sampled from.
    """
    return {
        "": counted,
        "aligned_": counted & (advantage > 0),
        "unaligned_": counted & (advantage < 0),
        "compared_": counted & (fresh > 0),
    }


def _rewards(mean: Means, offset: float) -> dict[str, float]:
    """Return the mean implicit rewards of each side, and the divergence that they estimate.

    The term of a row is -g(r) where its advantage is positive, f*(g(r)) where it is negative.
    """
    aligned, unaligned = mean("aligned_reward", "aligned_rows"), mean("unaligned_reward", "unaligned_rows")
    estimate = -sum(mean(f"{side}_weighted_term", f"{side}_weight") for side in ("aligned", "unaligned"))
    return {
        PREFIX + "implicit_reward": mean("reward", "rows"),
        PREFIX + "implicit_reward_aligned": aligned,
        PREFIX + "implicit_reward_unaligned": unaligned,
        PREFIX + "implicit_reward_margin": aligned - unaligned,
        PREFIX + "divergence_estimate": estimate + offset,
        PREFIX + "clipped_share": mean("clipped", "rows"),
    }


def _slopes(mean: Means, settings: FDivergenceConfig, lam: float) -> dict[str, float]:
    """The on-policy loss, and of each half of the minimised loss sum |dL/dr| (beta + gamma).

    Lambda, scales and denominators are in it.
    """
    assert settings.gamma is not None

    def half(gamma: float, *sides: str) -> float:
        found = [mean(f"{side}slope", f"{side}loss_units") for side in sides if mean.sums[f"{side}loss_units"]]
        return (settings.beta + gamma) * sum(found)  # a side without rows pulls nothing

    on_policy = half(settings.gamma, "")
    preference = half(settings.preference_gamma, *(side for side in PREFERENCE_SUMS if f"{side}slope" in mean.sums))
    both = on_policy + preference
    share = 1.0 - lam if lam in (0, 1) else on_policy / both if both else math.nan
    return {
        PREFIX + "on_policy_loss": mean("loss", "loss_units"),
        PREFIX + "on_policy_slope": on_policy,
        PREFIX + "preference_slope": preference,
        PREFIX + "on_policy_slope_share": share,
    }


def compared_with_rollout(log_prob: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compare the actor's probabilities with the rollout engine's: each row's sums of `COMPARED` over its tokens.

    A chunk of rows at a time, so that what lies between stays in the cache and is soon freed.

    Args:
        log_prob: (n, T) of the actor, nats.
        rollout: (n, T) of the rollout engine, nats.
        mask: (n, T) bool.

    Returns:
        (len(COMPARED), n) float32.
    """
    block = _BLOCK_ON_CPU if log_prob.device.type == "cpu" else _BLOCK
    size = block // max(1, mask.shape[-1]) + 1
    rows = [slice(start, start + size) for start in range(0, max(1, len(mask)), size)]
    return torch.cat([_compared_block(log_prob[part], rollout[part], mask[part]) for part in rows], dim=1)


def _compared_block(log_prob: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    actor, engine = (torch.where(mask, values, 0.0).float() for values in (log_prob, rollout))
    summands = actor.new_empty((len(COMPARED), *actor.shape))
    gap, difference, difference_squared, p, p_squared, q, q_squared, product = summands
    torch.sub(actor, engine, out=gap).abs_()
    # p - 1 in place of p: it is 0 where masked, and small where p is near 1, where a correlation loses its digits.
    torch.expm1(actor, out=p)
    torch.expm1(engine, out=q)
    torch.sub(p, q, out=difference).abs_()
    for one, other, result in (
        (difference, difference, difference_squared),
        (p, p, p_squared),
        (q, q, q_squared),
        (p, q, product),
    ):
        torch.mul(one, other, out=result)
    return summands.sum(dim=-1)


def _distances(mean: Means) -> dict[str, float]:
    """Measure how far the policy is from the reference, nats a token."""
    return {PREFIX + "reference_gap": mean("reference_gap", "tokens")}


def _rollout_difference(sums: dict[str, float]) -> dict[str, float]:
    """verl's names for its own stale-weight check, whose forward pass f-GRPO saves."""
    tokens = sums["compared_tokens"]
    if not tokens:
        return {}

    def mean(name: str) -> float:
        return float(sums[f"compared_{name}"] / tokens)

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
    advantage: torch.Tensor, weight: torch.Tensor, counted: torch.Tensor, settings: Any, asked: int | None = None
) -> dict[str, float]:
    """Shares that the driver alone can say: it has all rows of the update.

    Args:
        advantage: (n,) a_i.
        weight: (n,) w_i.
        counted: (n,) bool, rows with a token that verl has not added to fill a mini-batch.
        settings: FDivergenceConfig; `weight_cap` is read.
        asked: responses that the prompts of the update were to get; None: as many as there are rows.
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
        PREFIX + "absent_share": 1 - counted.sum().item() / (asked or len(counted)),
        PREFIX + "zero_advantage_share": (counted & (advantage == 0)).sum().item() / rows,
        PREFIX + "aligned_share": (counted & (advantage > 0)).sum().item() / rows,
        PREFIX + "weight_effective_sample_share": float(size),
        PREFIX + "weight_capped_share": capped,
    }
