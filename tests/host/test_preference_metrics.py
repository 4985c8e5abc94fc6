"""Held-out preference data and quantiles of distances."""

import math

import numpy as np
import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.preference_metrics import held_out_metrics, quantile_of_bins, ranking_metrics
from fgrpo_plugin.preference.tokens import TokenRow


def test_held_out_accuracy_counts_pairs_and_without_pairs_all_couples():
    sides = [True, False, True, False]
    paired = [TokenRow([1], [2], side, f"p{i // 2}", "") for i, side in enumerate(sides)]
    rewards = torch.tensor([0.5, 0.1, -0.3, 0.2])
    found = held_out_metrics(paired, rewards, FDivergenceConfig(divergence="pearson"))
    assert found["val-preference/accuracy"] == 0.5
    assert found["val-preference/implicit_reward_margin"] == pytest.approx(0.1 - 0.15)
    estimate = 0.1 - ((0.1 + 0.01 / 4) + (0.2 + 0.04 / 4)) / 2
    assert found["val-preference/divergence_estimate"] == pytest.approx(estimate)
    unpaired = [TokenRow([1], [2], side, None, "") for side in sides]
    assert held_out_metrics(unpaired, rewards, FDivergenceConfig())["val-preference/accuracy"] == 0.5
    tied = held_out_metrics(paired, torch.tensor([0.0, 0.0, 1.0, 0.0]), FDivergenceConfig())
    assert tied["val-preference/accuracy"] == 0.75
    # Both pairs are right, though one's desirable row is below the other's undesirable one; a half of a pair is none.
    apart = torch.tensor([0.5, 0.1, -0.3, -0.4])
    assert held_out_metrics(paired, apart, FDivergenceConfig())["val-preference/accuracy"] == 1
    assert held_out_metrics(unpaired, apart, FDivergenceConfig())["val-preference/accuracy"] == 0.75
    half = [*paired, TokenRow([1], [2], True, "p2", "")]
    found = held_out_metrics(half, torch.cat([apart, torch.tensor([-9.0])]), FDivergenceConfig())
    assert found["val-preference/accuracy"] == 1
    many = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0)).float()
    rows = [TokenRow([1], [2], i % 3 == 0, None, "") for i in range(60)]
    above, below = many[::3], many[torch.arange(60) % 3 != 0]
    couples = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    settings = FDivergenceConfig(divergence="kl", link="density_ratio")
    assert held_out_metrics(rows, many, settings)["val-preference/accuracy"] == pytest.approx(sum(couples) / 800)
    far = held_out_metrics(rows, many + 1e4, settings)  # outside of what float32 can hold of exp(r)
    assert math.isfinite(far["val-preference/divergence_estimate"])


def test_quantiles_of_bins_are_near_those_of_the_values():
    values = np.random.default_rng(0).normal(size=4000)
    edges = np.linspace(-3, 3, 61)
    counts = np.bincount(np.searchsorted(edges, values), minlength=62)
    for share in (0.05, 0.5, 0.95):
        assert quantile_of_bins(counts.tolist(), edges.tolist(), share) == pytest.approx(
            np.quantile(values, share), abs=0.02
        )
    assert math.isnan(quantile_of_bins([0.0, 0.0], [1.0], 0.5))
    assert quantile_of_bins([5.0, 0.0, 0.0], [-1.0, 1.0], 0.05) == -1.0
    assert quantile_of_bins([0.0, 0.0, 5.0], [-1.0, 1.0], 0.05) == 1.0


def test_held_out_ranking_accuracy_is_of_the_policys_log_probs_in_pairs():
    draw = torch.Generator().manual_seed(0)
    rows = [TokenRow([1], [2], i % 2 == 0, f"p{i // 2}", "") for i in range(40)] + [TokenRow([1], [2], True, None, "")]
    log_prob = -torch.randint(0, 4, (41, 5), generator=draw) / 2
    mask = torch.rand(41, 5, generator=draw) < 0.6
    mask[:, 2] = True  # each response has a token
    right, right_by_token = [], []
    for plus in range(0, 40, 2):
        (one, other) = ([v for v, c in zip(log_prob[i].tolist(), mask[i], strict=True) if c] for i in (plus, plus + 1))
        right.append(sum(one) >= sum(other))
        right_by_token.append(sum(one) * len(other) >= sum(other) * len(one))
    found = ranking_metrics(rows, log_prob, mask)
    assert found == {
        "val-preference/ranking_accuracy": pytest.approx(sum(right) / 20),
        "val-preference/ranking_accuracy_length_normalized": pytest.approx(sum(right_by_token) / 20),
    }
    assert sum(right) != sum(right_by_token)
    broken = log_prob.clone()
    broken[1, 2] = math.nan
    assert all(map(math.isnan, ranking_metrics(rows, broken, mask).values()))
    # The same pair twice counts twice, and the order of rows is nothing to it.
    again = [*rows, *(TokenRow([1], [2], side, "twice", "") for side in (True, False))]
    twice = ranking_metrics(again, torch.cat([log_prob, log_prob[:2]]), torch.cat([mask, mask[:2]]))
    assert twice["val-preference/ranking_accuracy"] == pytest.approx((sum(right) + right[0]) / 21)
    order = torch.randperm(41, generator=draw)
    assert ranking_metrics([rows[i] for i in order], log_prob[order], mask[order]) == found


def test_without_pairs_there_is_no_ranking_accuracy():
    sides = (True, False, True)
    for rows in ([TokenRow([1], [2], s, None, "") for s in sides], [TokenRow([1], [2], s, str(s), "") for s in sides]):
        assert ranking_metrics(rows, -torch.rand(3, 2), torch.ones(3, 2)) == {}
