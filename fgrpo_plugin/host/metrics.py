"""What the workers' sums say, once a step: the means that the host logs."""

import bisect
import itertools
import math
from collections.abc import Sequence

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.metric_table import PREFIX
from fgrpo_plugin.host.policy_loss import DISTANCE_EDGES, SUMS


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
    mean = _Means(sums)
    offset = settings.build_divergence().estimate_offset
    aligned, unaligned = mean("aligned_reward", "aligned_rows"), mean("unaligned_reward", "unaligned_rows")
    estimate = mean("aligned_link", "aligned_weight") - mean("unaligned_conjugate", "unaligned_weight")
    means = {
        PREFIX + "implicit_reward": mean("reward", "rows"),
        PREFIX + "implicit_reward_aligned": aligned,
        PREFIX + "implicit_reward_unaligned": unaligned,
        PREFIX + "implicit_reward_margin": aligned - unaligned,
        PREFIX + "divergence_estimate": estimate + offset,
        PREFIX + "on_policy_loss": mean("loss", "loss_units"),
        PREFIX + "clipped_share": mean("clipped", "rows"),
        PREFIX + "reference_gap": mean("reference_gap", "tokens"),
    }
    means.update(_slopes(mean, settings, lam))
    if "desirable_rows" in sums:
        means.update(_preference_metrics(mean, offset))
    if compare_rollout:
        means.update(_rollout_difference(sums))
    return {name: value for name, value in means.items() if math.isfinite(value)}


class _Means:
    """Ratios of two of the workers' sums; NaN where there was nothing to divide by."""

    def __init__(self, sums: dict[str, float]):
        self.sums = sums

    def __call__(self, total: str, of: str) -> float:
        return float(self.sums[total] / self.sums[of]) if self.sums[of] else math.nan


def _slopes(mean: _Means, settings: FDivergenceConfig, lam: float) -> dict[str, float]:
    """sum |dL/dr| (beta + gamma) of each half of the minimised loss, with lambda, scales and denominators in it."""
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
        PREFIX + "on_policy_slope": on_policy,
        PREFIX + "preference_slope": preference,
        PREFIX + "on_policy_slope_share": share,
    }


def _preference_metrics(mean: _Means, offset: float) -> dict[str, float]:
    """What the preference rows say about the policy, and how far it is from those who wrote them."""
    above, below = (mean(f"{side}_reward", f"{side}_rows") for side in ("desirable", "undesirable"))
    rows = mean.sums["desirable_rows"] + mean.sums["undesirable_rows"]
    right = mean.sums["desirable_right"] + mean.sums["undesirable_right"]
    found = {
        "preference_loss": mean("desirable_loss", "desirable_units") + mean("undesirable_loss", "undesirable_units"),
        "preference_divergence_estimate": mean("desirable_link", "desirable_rows")
        - mean("undesirable_conjugate", "undesirable_rows")
        + offset,
        "preference_implicit_reward_desirable": above,
        "preference_implicit_reward_undesirable": below,
        "preference_implicit_reward_margin": above - below,
        "preference_accuracy": right / rows if rows else math.nan,
        "preference_desirable_share": mean.sums["desirable_rows"] / rows if rows else math.nan,
        "preference_clipped_share": mean.sums["preference_clipped"] / rows if rows else math.nan,
    }
    for side in ("desirable", "undesirable"):
        found[f"preference_distance_{side}"] = mean(f"{side}_distance", f"{side}_rows")
        bins = [mean.sums[f"{side}_distance_bin{edge}"] for edge in range(len(DISTANCE_EDGES) + 1)]
        for name, share in (("p05", 0.05), ("p95", 0.95)):
            found[f"preference_distance_{side}_{name}"] = quantile_of_bins(bins, DISTANCE_EDGES, share)
    return {PREFIX + name: value for name, value in found.items()}


def quantile_of_bins(counts: Sequence[float], edges: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the counted values lie, interpolated inside its bin.

    Args:
        counts: one more than edges; the first and the last bin are open, and answer with their one edge.
        edges: rising.
        share: in (0, 1).

    Returns:
        NaN where nothing was counted.
    """
    cumulative = list(itertools.accumulate(counts))
    wanted = share * cumulative[-1]
    if wanted <= 0:
        return math.nan
    place = bisect.bisect_left(cumulative, wanted)  # the first bin up to which so many were counted
    if place in (0, len(edges)):
        return float(edges[min(place, len(edges) - 1)])
    low, high = edges[place - 1 : place + 1]
    return float(low + (high - low) * (wanted - cumulative[place - 1]) / counts[place])


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
