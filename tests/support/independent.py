"""One update of f-GRPO or f-HAL from the mathematics alone: what tests compare verl's worker with.

Written after the definitions, one response at a time, without padding, batches or masks over batches: plain
transformers and peft for the model, plain Python for the numbers of a group, float64 for all that comes after the
logits. Nothing of the package or of verl is imported, so that no fault can be shared.

A row is a dict: prompt, response (token ids), mask (1 where the model wrote the token), reward, group, old_log_prob (of
each response token, nats). A preference row has prompt, response and desirable.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import softplus

BETA = 0.1
STD_EPS = 1e-6
LOG_2 = math.log(2.0)
# divergence -> (increasing link g of a real number, convex conjugate f* of g's values)
LINKS_AND_CONJUGATES: dict[str, tuple[Callable, Callable]] = {
    "pearson": (lambda v: v, lambda s: s + s**2 / 4),
    "kl": (lambda v: v, lambda s: torch.exp(s - 1)),
    "reverse_kl": (lambda v: -torch.exp(-v), lambda s: -1 - torch.log(-s)),
    "squared_hellinger": (lambda v: 1 - torch.exp(-v), lambda s: s / (1 - s)),
    "jensen_shannon": (lambda v: LOG_2 - softplus(-v), lambda s: -torch.log(2 - torch.exp(s))),
}


@dataclass(frozen=True)
class Preset:
    """gamma, s_all, s_on; weights scaled to mean 1 on each side of a group, or shares of the group; level of pi_old."""

    gamma: float
    s_all: float
    s_on: float
    scaled_on_each_side: bool
    old_log_prob_of_a_token: bool


PRESETS = {
    "stable": Preset(0.0, 1 / BETA, 1.0, scaled_on_each_side=True, old_log_prob_of_a_token=True),
    "paper": Preset(0.0, 1.0, 1 + 1 / BETA, scaled_on_each_side=False, old_log_prob_of_a_token=False),
    "released": Preset(1.0, 1.0, 1.0, scaled_on_each_side=False, old_log_prob_of_a_token=False),
}


@dataclass(frozen=True)
class Loss:
    """What is minimised: s_all (lam L_FDO + (1 - lam) s_on L_fGRPO)."""

    divergence: str
    preset: Preset
    lam: float
    temperature: float

    def good(self, r: torch.Tensor) -> torch.Tensor:
        """Of a response that shall become likelier: -g(r)."""
        link, _ = LINKS_AND_CONJUGATES[self.divergence]
        return -link(r)

    def bad(self, r: torch.Tensor) -> torch.Tensor:
        """Of one that shall become less likely: f*(g(r))."""
        link, conjugate = LINKS_AND_CONJUGATES[self.divergence]
        return conjugate(link(r))


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of one group."""
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return [(reward - mean) / (deviation + STD_EPS) for reward in rewards]


def weights(group: Sequence[dict[str, Any]], of_advantage: Sequence[float], preset: Preset) -> list[float]:
    """Of the rows of one group: softmax of +-R - log pi_old, on the row's side."""
    old = []
    for row in group:
        written = [value for value, mine in zip(row["old_log_prob"], row["mask"], strict=True) if mine]
        old.append(sum(written) / (max(len(written), 1) if preset.old_log_prob_of_a_token else 1))
    found = [0.0] * len(group)
    for sign in (1, -1):
        side = [i for i, advantage in enumerate(of_advantage) if sign * advantage > 0]
        everyone = side if preset.scaled_on_each_side else range(len(group))
        factor = len(side) if preset.scaled_on_each_side else 1
        scores = [math.exp(sign * row["reward"] - value) for row, value in zip(group, old, strict=True)]
        for i in side:
            found[i] = factor * scores[i] / sum(scores[j] for j in everyone)
    return found


def log_probs(model: Any, row: dict[str, Any], temperature: float) -> torch.Tensor:
    """log pi of each response token."""
    tokens = torch.tensor([row["prompt"] + row["response"]])
    logits = model(input_ids=tokens, use_cache=False).logits[0, len(row["prompt"]) - 1 : -1]
    # In float64: over a large vocabulary float32's log_softmax is off by enough to show in a gradient's fifth digit.
    table = torch.log_softmax(logits.double() / temperature, dim=-1)
    return table.gather(1, torch.tensor(row["response"]).unsqueeze(1)).squeeze(1)


def reference_log_probs(model: Any, rows: Iterable[dict[str, Any]], temperature: float) -> list[torch.Tensor]:
    """log pi_ref of each row's tokens: of a reference model, or of an adapted one with its adapter disabled."""
    off: AbstractContextManager = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with torch.no_grad(), off:
        return [log_probs(model, row, temperature) for row in rows]


def implicit_reward(policy: torch.Tensor, reference: torch.Tensor, mask: Sequence[int], gamma: float) -> torch.Tensor:
    """beta sum log(pi / pi_ref) + gamma sum log(pi / pi_old), with pi_old the policy as it is."""
    written = torch.tensor(mask, dtype=torch.bool)
    policy, reference = policy[written].double(), reference[written].double()
    return BETA * (policy - reference).sum() + gamma * (policy - policy.detach()).sum()


class Row(NamedTuple):
    """What one row came to: a and w (of D+, D-: +-1 and 1), r, -g(r) or f*(g(r)), |log(pi / pi_ref)| of each token."""

    advantage: float
    weight: float
    reward: float
    term: float
    gaps: list[float]


class Update(NamedTuple):
    """What was minimised, and the rows with a token that it is made of."""

    loss: float
    on_policy: list[Row]
    preferences: list[Row]


def gradient(
    model: Any,
    rows: Sequence[dict[str, Any]],
    references: Sequence[torch.Tensor],
    preferences: Sequence[dict[str, Any]],
    preference_references: Sequence[torch.Tensor],
    loss: Loss,
) -> Update:
    """The loss of one update and its rows; its gradient is added to the parameters' `.grad`, response by response.

    Args:
        model: of transformers or peft.
        rows: on-policy rows, those of a group in any place.
        references: log pi_ref of each row's tokens.
        preferences: D+ and D-.
        preference_references: log pi_ref of each preference row's tokens.
        loss: what is minimised.
    """
    preset, total = loss.preset, 0.0
    found = Update(0.0, [], [])
    counted = sum(any(row["mask"]) for row in rows)
    for name in dict.fromkeys(row["group"] for row in rows):
        members = [i for i, row in enumerate(rows) if row["group"] == name]
        group = [rows[i] for i in members]
        of_advantage = advantages([row["reward"] for row in group])
        of_weight = weights(group, of_advantage, preset)
        for i, advantage, weight in zip(members, of_advantage, of_weight, strict=True):
            if not any(rows[i]["mask"]):
                continue
            policy = log_probs(model, rows[i], loss.temperature)
            r = implicit_reward(policy, references[i], rows[i]["mask"], preset.gamma)
            term = loss.good(r) if advantage > 0 else loss.bad(r)
            found.on_policy.append(_row(advantage, weight, r, term, policy, references[i], rows[i]["mask"]))
            if advantage:
                total += _add(preset.s_all * (1 - loss.lam) * preset.s_on * abs(advantage) * weight * term / counted)
    for row, reference in zip(preferences, preference_references, strict=True):
        same_side = sum(other["desirable"] == row["desirable"] for other in preferences)
        policy, mask = log_probs(model, row, loss.temperature), [1] * len(row["response"])
        r = implicit_reward(policy, reference, mask, gamma=0.0)
        term = loss.good(r) if row["desirable"] else loss.bad(r)
        found.preferences.append(_row(1.0 if row["desirable"] else -1.0, 1.0, r, term, policy, reference, mask))
        total += _add(preset.s_all * loss.lam * term / same_side)
    return found._replace(loss=total)


def _add(share: torch.Tensor) -> float:
    """A row's share of the loss, once its gradient has been added."""
    share.backward()
    return share.item()


def _row(
    advantage: float,
    weight: float,
    r: torch.Tensor,
    term: torch.Tensor,
    policy: torch.Tensor,
    reference: torch.Tensor,
    mask: Sequence[int],
) -> Row:
    written = torch.tensor(mask, dtype=torch.bool)
    gaps = (policy.detach()[written].double() - reference[written].double()).abs()
    return Row(advantage, weight, r.item(), term.item(), gaps.tolist())
