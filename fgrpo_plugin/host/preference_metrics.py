"""What is logged of preference rows: each metric's sum beside its quotient, and the metrics on held-out data."""

import bisect
import itertools
import math
from collections.abc import Sequence

import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.host.contract import PREFIX, VALIDATION
from fgrpo_plugin.losses import clip_implicit_reward
from fgrpo_plugin.preference.tokens import TokenRow

_DISTANCES = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
DISTANCE_EDGES = (*(-edge for edge in reversed(_DISTANCES)), 0.0, *_DISTANCES)
"""nats a sequence: bins in which log pi_theta - log pi_ref of preference rows is counted, for its tails."""


class Means:
    """Ratios of two of the workers' sums; NaN where there was nothing to divide by."""

    def __init__(self, sums: dict[str, float]):
        self.sums = sums

    def __call__(self, total: str, of: str) -> float:
        return float(self.sums[total] / self.sums[of]) if self.sums[of] else math.nan


def row_reward(reward: torch.Tensor, clipped: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reward and clip flag of each row, (n,); at one reward a token a row is described by its mean."""
    if reward.dim() == 1:
        return reward, clipped
    return (torch.where(mask, reward, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1), (clipped & mask).any(dim=-1))


def preference_sums(
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
    reward, clipped = row_reward(reward, clipped, mask)
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


def side_loss_sums(
    losses: torch.Tensor, slopes: torch.Tensor, sides: Sequence[torch.Tensor], units: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The preference loss and the slopes of this micro-batch's rows on each side, and what they are divided by.

    Args:
        losses: (n,) -g(r) or f*(g(r)), not divided.
        slopes: (n,) of the loss, times the global mini-batch's denominator of the row's side.
        sides: (n,) bool of D+ and of D-.
        units: (n,) what each row counts in its side's denominator.
    """
    sums: dict[str, torch.Tensor] = {}
    for name, side in zip(("desirable", "undesirable"), sides, strict=True):
        for what, values in (("loss", losses), ("slope", slopes), ("units", units)):
            sums[f"{name}_{what}"] = torch.where(side, values, 0)
    return sums


def preference_quotients(mean: Means, offset: float) -> dict[str, float]:
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


def held_out_metrics(rows: Sequence[TokenRow], rewards: torch.Tensor, settings: FDivergenceConfig) -> dict[str, float]:
    """How well the implicit reward tells the sides of held-out data apart.

    Args:
        rows: n rows.
        rewards: (n,) implicit rewards; clipped as in the loss for the estimate.
        settings: for the divergence.

    Returns:
        Accuracy: the share of pairs whose desirable row has the larger reward (a tie counts half); without pairs, of
        all couples of a D+ and a D- row. And the margin between the sides' mean rewards, and the divergence estimate.
    """
    divergence = settings.build_divergence()
    desirable = torch.tensor([row.desirable for row in rows])
    above, below = rewards[desirable], rewards[~desirable]
    pairs: dict[str, dict[bool, float]] = {}
    for row, reward in zip(rows, rewards.tolist(), strict=True):
        if row.pair is not None:
            pairs.setdefault(row.pair, {})[row.desirable] = reward
    differences = torch.tensor([pair[True] - pair[False] for pair in pairs.values() if len(pair) == 2])
    if len(differences):
        won = float((differences > 0).double().mean() + 0.5 * (differences == 0).double().mean())
    else:  # Mann and Whitney's U, by ranks: the couples themselves may be too many to hold
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
