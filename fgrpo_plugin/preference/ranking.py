"""Ranking accuracy: in how many pairs a model gives the chosen response at least the rejected one's probability.

Of the model's own log-probs, without a reference: Chen et al. 2024, arXiv 2405.19534, with its length-normalised form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fgrpo_plugin.preference.token_rows import TokenRow


@dataclass(frozen=True)
class Ranked:
    """How a model ranks p pairs.

    Attributes:
        lead: (p,) float64 nats, log pi(chosen) - log pi(rejected), each summed over its response's tokens.
        lead_per_token: (p,) float64 nats a token, the same of the means over the tokens.
        longer: (p,) whether the chosen response has more tokens.
    """

    lead: torch.Tensor
    lead_per_token: torch.Tensor
    longer: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """(p,) bool, log pi(chosen) >= log pi(rejected): a tie is right."""
        return self.lead >= 0

    @property
    def right_per_token(self) -> torch.Tensor:
        """(p,) bool, the same of the means over the tokens."""
        return self.lead_per_token >= 0


def pairs_of(rows: Sequence[TokenRow]) -> torch.Tensor:
    """The places of each pair's desirable and undesirable row, (p, 2) int64, in the order in which the pairs begin.

    Args:
        rows: n rows; one without a pair, or without its partner, is in none.
    """
    found: dict[str, dict[bool, int]] = {}
    for place, row in enumerate(rows):
        if row.pair is not None:
            found.setdefault(row.pair, {})[row.desirable] = place
    both = [(sides[True], sides[False]) for sides in found.values() if len(sides) == 2]
    return torch.tensor(both, dtype=torch.int64).reshape(-1, 2)


def ranked(total: torch.Tensor, tokens: torch.Tensor, pairs: torch.Tensor) -> Ranked:
    """Compare the rows of each pair; a pair with a response without tokens is left out.

    Args:
        total: (n,) log pi of each response, summed over its tokens, nats; float64, so that equal sums are ties in
            whatever order they were added.
        tokens: (n,) of each response.
        pairs: (p, 2), from `pairs_of`.
    """
    better, worse = pairs.unbind(-1)
    both = (tokens[better] > 0) & (tokens[worse] > 0)
    better, worse = better[both], worse[both]
    total = total.double()
    mean = total / tokens
    return Ranked(total[better] - total[worse], mean[better] - mean[worse], tokens[better] > tokens[worse])


def summed(log_prob: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi of whole responses, (n,) float64 nats, and their tokens, (n,).

    Args:
        log_prob: (n, T) nats, any float dtype; what is not of the response is not looked at.
        mask: (n, T), true or 1 at tokens of the response.
    """
    mask = mask.bool()
    return torch.where(mask, log_prob, 0.0).sum(dim=-1, dtype=torch.float64), mask.sum(dim=-1)
