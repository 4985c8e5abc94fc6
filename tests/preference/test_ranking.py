"""Ranking accuracy against a loop over responses in exact fractions."""

import random
from fractions import Fraction

import pytest
import torch

from fgrpo_plugin.preference.ranking import pairs_of, ranked, summed
from fgrpo_plugin.preference.tokens import TokenRow


def row(desirable, pair):
    return TokenRow([1], [2], desirable, pair, "")


def by_loop(rows, log_prob, mask):
    """(lead, lead per token, longer) of each pair, by fractions: without rounding."""
    found = []
    for name in dict.fromkeys(one.pair for one in rows if one.pair is not None):
        sides = {}
        for one, values, counted in zip(rows, log_prob.tolist(), mask.tolist(), strict=True):
            if one.pair == name:
                sides[one.desirable] = [Fraction(v) for v, c in zip(values, counted, strict=True) if c]
        if len(sides) == 2 and all(sides.values()):
            better, worse = sides[True], sides[False]
            by_token = sum(better) / len(better) - sum(worse) / len(worse)
            found.append((sum(better) - sum(worse), by_token, len(better) > len(worse)))
    return found


def drawn(seed, dtype, pairs=40, width=6):
    """Pairs in any order with rows that have no pair or no partner, masks with holes, quarters so that many tie."""
    rng = random.Random(seed)
    rows = [row(side, f"p{pair}") for pair in range(pairs) for side in (True, False)]
    rows += [row(True, None), row(False, None), row(True, "alone"), row(False, "other alone")]
    rng.shuffle(rows)
    draw = torch.Generator().manual_seed(seed)
    log_prob = -torch.randint(0, 5, (len(rows), width), generator=draw).to(dtype) / 4
    mask = torch.rand(len(rows), width, generator=draw) < 0.5
    return rows, log_prob.masked_fill(~mask, float("nan")), mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_ranked_as_a_loop_ranks_them(seed, dtype):
    rows, log_prob, mask = drawn(seed, dtype)
    expected = by_loop(rows, log_prob.double().nan_to_num(), mask)
    for given in (mask, mask.int(), mask.float()):
        found = ranked(*summed(log_prob, given), pairs_of(rows))
        assert found.lead.dtype == found.lead_per_token.dtype == torch.float64
        assert found.lead.tolist() == [float(lead) for lead, _, _ in expected]
        assert found.lead_per_token.tolist() == pytest.approx([float(lead) for _, lead, _ in expected])
        assert found.right.tolist() == [lead >= 0 for lead, _, _ in expected]
        assert found.longer.tolist() == [longer for _, _, longer in expected]
    # There are ties, so that >= is not >, and pairs that the two forms rank otherwise.
    assert 0 in found.lead and (found.right != found.right_per_token).any()
    assert 0 < found.longer.sum() < len(expected) < 40  # a pair with an empty response is left out


def test_pairs_begin_in_the_order_of_their_rows_and_need_both_sides():
    rows = [row(False, "b"), row(True, "a"), row(True, None), row(True, "b"), row(True, "c"), row(False, "a")]
    assert pairs_of(rows).tolist() == [[3, 0], [1, 5]]
    assert pairs_of(rows[:2]).shape == pairs_of([]).shape == (0, 2)
    assert len(ranked(torch.empty(0), torch.empty(0), pairs_of([])).lead) == 0


def test_equal_log_probs_are_a_tie_in_whatever_order_they_are_added():
    """In float32 the two sums differ in the last digit, and one of the two ways round would be called wrong."""
    values = torch.tensor([-0.1, -2.3, -7.7, -0.3, -11.9, -1e-4])
    log_prob = torch.stack([values, values.sort().values])
    assert len({float(sum(part, torch.zeros(()))) for part in (values, *log_prob[1:])}) == 2
    for sides in ((True, False), (False, True)):
        rows = [row(side, "p") for side in sides]
        found = ranked(*summed(log_prob, torch.ones(2, 6)), pairs_of(rows))
        assert found.lead.tolist() == found.lead_per_token.tolist() == [0.0]
        assert found.right.tolist() == found.right_per_token.tolist() == [True]
    # A mean that is the same over another number of tokens.
    tied = ranked(*summed(torch.tensor([[-1.0, -2.0], [-1.5, 0.0]]), torch.tensor([[1, 1], [1, 0]])), pairs_of(rows))
    assert tied.lead_per_token.tolist() == [0.0] and tied.lead.tolist() == [1.5]


def test_the_least_lead_counts():
    for value, right in ((2.0**-20, True), (0.0, True), (-(2.0**-20), False)):
        found = ranked(torch.tensor([-8.0 + value, -8.0]), torch.tensor([2, 2]), torch.tensor([[0, 1]]))
        assert found.right.tolist() == found.right_per_token.tolist() == [right]
