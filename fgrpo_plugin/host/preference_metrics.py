"""What is logged of preference rows: each metric's sum beside its quotient, and the metrics on held-out data."""

import bisect
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import PREFIX, VALIDATION
from fgrpo_plugin.losses import clip_implicit_reward
from fgrpo_plugin.preference.ranking import pairs_of, ranked, summed
from fgrpo_plugin.preference.tokens import TokenRow

_DISTANCES = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
DISTANCE_EDGES = (*(-edge for edge in reversed(_DISTANCES)), 0.0, *_DISTANCES)
"""nats a sequence: bins in which log pi_theta - log pi_ref of preference rows is counted, for its tails."""
_BINS = tuple(f"distance_bin{edge}" for edge in range(len(DISTANCE_EDGES) + 1))
_SUMMED = ("rows", "clipped", "reward", "term", "loss", "slope", "loss_units", "right", "distance", *_BINS)
PREFERENCE_SUMS = {"desirable_": _SUMMED, "undesirable_": _SUMMED}
"""Side -> which values the workers add up over its rows, as `ON_POLICY_SUMS` of metrics.py."""


class Means:
    """Ratios of two of the workers' sums; NaN where there was nothing to divide by."""

    def __init__(self, sums: dict[str, float]):
        self.sums = sums

    def __call__(self, total: str, of: str) -> float:
        return float(self.sums[total] / self.sums[of]) if self.sums[of] else math.nan


def preference_values(reward: torch.Tensor, distance: torch.Tensor, side: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what preference rows alone report, (n,) each: whether r has the right sign; the distance, its bin.

    Args:
        reward: (n,) r of each row.
        distance: (n,) log pi_theta - log pi_ref of the response, nats.
        side: (n,) +1 for D+, -1 for D-.
    """
    edges = _edges(distance.device)
    place = torch.bucketize(distance, edges)
    bins = place == torch.arange(len(edges) + 1, device=distance.device).unsqueeze(-1)
    return {"right": reward * side > 0, "distance": distance, **dict(zip(_BINS, bins, strict=True))}


@lru_cache
def _edges(device: torch.device) -> torch.Tensor:
    """Return the bins' edges, made once a process: making a tensor of Python numbers waits for the device."""
    return torch.tensor(DISTANCE_EDGES, device=device)


def preference_quotients(mean: Means, offset: float) -> dict[str, float]:
    """Turn the workers' sums over preference rows into the metrics that are logged."""
    sides = ("desirable", "undesirable")
    above, below = (mean(f"{side}_reward", f"{side}_rows") for side in sides)
    rows, right, clipped = (sum(mean.sums[f"{side}_{name}"] for side in sides) for name in ("rows", "right", "clipped"))
    found = {
        "preference_loss": sum(mean(f"{side}_loss", f"{side}_loss_units") for side in sides),
        "preference_divergence_estimate": offset - sum(mean(f"{side}_term", f"{side}_rows") for side in sides),
        "preference_implicit_reward_desirable": above,
        "preference_implicit_reward_undesirable": below,
        "preference_implicit_reward_margin": above - below,
        "preference_accuracy": right / rows if rows else math.nan,
        "preference_desirable_share": mean.sums["desirable_rows"] / rows if rows else math.nan,
        "preference_clipped_share": clipped / rows if rows else math.nan,
    }
    for side in sides:
        found[f"preference_distance_{side}"] = mean(f"{side}_distance", f"{side}_rows")
        bins = [mean.sums[f"{side}_{name}"] for name in _BINS]
        for name, share in (("p05", 0.05), ("p95", 0.95)):
            found[f"preference_distance_{side}_{name}"] = quantile_of_bins(bins, DISTANCE_EDGES, share)
    return {PREFIX + name: value for name, value in found.items()}


def quantile_of_bins(counts: Sequence[float], edges: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the counted values lie, interpolated inside its bin.

    Args:
        counts: one more than edges; the first and the last bin are open, and give their one edge.
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


def held_out_metrics(rows: Sequence[TokenRow], rewards: torch.Tensor, settings: FDivergenceConfig) -> dict[str, float]:
    """Measure how well the implicit reward tells desirable from undesirable held-out rows.

    Args:
        rows: n rows.
        rewards: (n,) implicit rewards; clipped as in the loss for the estimate.
        settings: for the divergence.

    Returns:
        Accuracy: the share of pairs whose desirable row has the larger reward (a tie counts half); without pairs, of
        every D+ row with every D- row. And the margin between their mean rewards, and the divergence estimate.
    """
    divergence = settings.build_divergence()
    desirable = torch.tensor([row.desirable for row in rows])
    above, below = rewards[desirable], rewards[~desirable]
    better, worse = pairs_of(rows).unbind(-1)
    differences = rewards[better] - rewards[worse]
    if len(differences):
        won = float((differences > 0).double().mean() + 0.5 * (differences == 0).double().mean())
    else:  # Mann and Whitney's U, by ranks: the pairs themselves may be too many to hold
        ordered = below.sort().values
        wins = torch.searchsorted(ordered, above) + torch.searchsorted(ordered, above, right=True)
        won = float(wins.double().mean() / 2 / len(below))
    clipped, _ = clip_implicit_reward(rewards, divergence, settings.implicit_reward_clip)
    link, conjugate = divergence.link(clipped[desirable]), divergence.conjugate_of_link(clipped[~desirable])
    estimate = link.double().mean() - conjugate.double().mean()
    return {
        VALIDATION + "accuracy": won,
        VALIDATION + "implicit_reward_margin": float(above.mean() - below.mean()),
        VALIDATION + "divergence_estimate": float(estimate) + divergence.estimate_offset,
    }


def _share(right: torch.Tensor, lead: torch.Tensor) -> float:
    """Return the share of pairs that are right; NaN where a log-prob is: such a policy has ranked no pair wrongly."""
    return float(right.double().mean()) if not bool(lead.isnan().any()) else math.nan


def ranking_metrics(rows: Sequence[TokenRow], log_prob: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Return how often the policy, without its reference, gives the D+ row of a held-out pair the larger probability.

    Args:
        rows: n rows.
        log_prob: (n, T) log pi_theta, nats.
        mask: (n, T) the tokens of each row's response.

    Returns:
        The share of pairs with log pi_theta(D+ row) >= log pi_theta(D- row), and the same of the means over tokens
        (arXiv 2405.19534); neither where there are no pairs.
    """
    found = ranked(*summed(log_prob, mask), pairs_of(rows))
    if not len(found.lead):
        return {}
    return {
        VALIDATION + "ranking_accuracy": _share(found.right, found.lead),
        VALIDATION + "ranking_accuracy_length_normalized": _share(found.right_per_token, found.lead_per_token),
    }
