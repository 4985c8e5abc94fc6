"""Every number that a run logs, against its definition by a loop over raw responses.

The workers' part goes through verl's own ``ppo_loss`` and verl's own aggregation (micro-batches of a rank, ranks,
mini-batches), for uneven micro-batches on two ranks.
"""

import math

import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import PREFIX
from fgrpo_plugin.host.metric_table import METRICS
from fgrpo_plugin.host.metrics import row_metrics
from fgrpo_plugin.host.preference_metrics import DISTANCE_EDGES, held_out_metrics, quantile_of_bins, ranking_metrics
from fgrpo_plugin.preference.tokens import TokenRow
from tests.support.metric_definitions import DESIRABLE, OFF, ON, ON_SPLITS, SETTINGS, SPLITS, Update, check


@pytest.mark.parametrize("name", SETTINGS)
def test_on_policy_metrics_are_their_definitions(name):
    update = Update(name, lam=0.0)
    found = update.reported([ON_SPLITS])
    expected = update.on_policy_definitions() | update.slope_definitions()
    check(found, expected)
    assert found[PREFIX + "on_policy_slope"] > 0 and 0 < expected[PREFIX + "aligned_share"] < 0.5
    if "clip" in name:
        assert 0 < found[PREFIX + "clipped_share"] < 1
    if "cap" in name:
        assert 0 < found[PREFIX + "weight_capped_share"] < 1


@pytest.mark.parametrize("lam", [0.4, 1.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_metrics_of_both_halves_are_their_definitions(name, lam):
    """lambda 1 as a schedule has it: both halves are in the update, and one of them does not move the policy."""
    update = Update(name, lam=lam)
    found = update.reported([SPLITS])
    check(found, update.on_policy_definitions() | update.preference_definitions() | update.slope_definitions())
    assert found[PREFIX + "preference_slope"] > 0 and (found[PREFIX + "on_policy_slope"] > 0) == (lam < 1)
    assert found[PREFIX + "preference_accuracy"] not in (0, 0.5, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["defaults", "token, clipped"])
def test_evaluated_without_gradient_the_numbers_are_the_same(name, mode, monkeypatch):
    expected = Update(name, lam=0.4).reported([SPLITS])
    update = Update(name, lam=0.4)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    for row in update.log_prob:
        row.requires_grad_(False)
    with mode():
        check(update.reported([SPLITS]), expected)


def test_a_schedule_at_lambda_0_is_all_on_policy():
    update = Update("defaults", lam=0.4)
    for row in update.rows:
        row["f_divergence_lam"] = torch.tensor(0.0)
    update.lam = 0.0
    found = update.reported([SPLITS])
    check(found, update.on_policy_definitions() | update.preference_definitions() | update.slope_definitions())
    assert found[PREFIX + "preference_slope"] == 0 and found[PREFIX + "on_policy_slope_share"] == 1


def test_without_a_slope_on_either_side_there_is_no_share():
    update = Update("defaults", lam=0.4, implicit_reward_clip=1e-6)
    found = update.reported([SPLITS])
    assert found[PREFIX + "on_policy_slope"] == found[PREFIX + "preference_slope"] == 0
    assert PREFIX + "on_policy_slope_share" not in found


def test_a_policy_that_is_the_reference_is_right_about_no_preference_row():
    update = Update("defaults", lam=0.4)
    for row in range(ON, ON + OFF):
        update.log_prob[row].data[:-1] = update.ref[row]
    found = update.reported([SPLITS])
    assert found[PREFIX + "preference_accuracy"] == found[PREFIX + "preference_implicit_reward_margin"] == 0


@pytest.mark.parametrize("lam, share", [(0.0, 1.0), (1.0, 0.0)])
def test_at_the_ends_of_lambda_the_share_does_not_need_a_slope(lam, share):
    update = Update("defaults", lam, implicit_reward_clip=1e-6)
    found = update.reported([SPLITS if lam else ON_SPLITS])
    assert found[PREFIX + "on_policy_slope"] == found[PREFIX + "preference_slope"] == 0
    assert found[PREFIX + "on_policy_slope_share"] == share


@pytest.mark.parametrize("side", [True, False])
def test_one_side_alone_has_its_own_numbers_and_no_other(side):
    update = Update("defaults", lam=0.4)
    rows = [ON + i for i in range(OFF) if DESIRABLE[i] == side]
    found = update.reported([[[[0, rows[0], 1], [2, 3]], [[4, 5, rows[1]], [7, *rows[2:]]]]])
    assert found[PREFIX + "preference_slope"] == pytest.approx(sum(map(update.slope, rows)), rel=2e-5)
    assert found[PREFIX + "preference_desirable_share"] == side
    for name in ("preference_loss", "preference_divergence_estimate", "preference_implicit_reward_margin"):
        assert PREFIX + name not in found
    for name, there in (("desirable", side), ("undesirable", not side)):
        for kind in ("implicit_reward_{}", "distance_{}", "distance_{}_p05", "distance_{}_p95"):
            assert (PREFIX + "preference_" + kind.format(name) in found) == there


def test_an_update_without_preference_rows_or_with_equal_probabilities_says_nothing_of_them():
    update = Update("defaults", lam=0.4)
    for row in update.log_prob:
        row.data.fill_(-1.0)
    for row in update.rollout:
        row.fill_(-1.5)
    found = update.reported([ON_SPLITS])
    assert not any("preference" in name for name in found if name != PREFIX + "preference_slope")
    assert found[PREFIX + "preference_slope"] == 0 and found[PREFIX + "on_policy_slope_share"] == 1
    assert "training/rollout_actor_probs_pearson_corr" not in found
    difference = math.exp(-1.0) - math.exp(-1.5)
    assert found["training/rollout_probs_diff_mean"] == pytest.approx(difference, rel=1e-5)


def test_shares_of_an_update_of_one_row_and_of_none():
    one, yes = torch.ones(1), torch.tensor([True])
    settings = FDivergenceConfig(weight_cap=1.0)
    shares = row_metrics(one, one, yes, settings)
    names = ("aligned_share", "zero_advantage_share", "weight_effective_sample_share", "weight_capped_share")
    assert [shares[PREFIX + name] for name in names] == [1, 0, 1, 1]
    assert [row_metrics(0 * one, one, yes, settings)[PREFIX + name] for name in names] == [0, 1, 0, 0]
    none = row_metrics(one, one, ~yes, settings)
    assert (shares[PREFIX + "absent_share"], none.pop(PREFIX + "absent_share")) == (0, 1)
    assert set(none.values()) == {0}
    assert row_metrics(one, one, yes, settings, 4)[PREFIX + "absent_share"] == 0.75


def test_quantiles_of_distances_lie_in_the_documented_bins():
    edges = [-200, -100, -50, -20, -10, -5, -2, -1, -0.1, 0, 0.1, 1, 2, 5, 10, 20, 50, 100, 200]
    assert list(DISTANCE_EDGES) == edges
    for place in range(1, len(edges)):
        counts = [4.0 * (i == place) for i in range(len(edges) + 1)]
        low, high = edges[place - 1 : place + 1]
        assert quantile_of_bins(counts, DISTANCE_EDGES, 0.25) == pytest.approx(low + (high - low) / 4)
    assert quantile_of_bins([2.0, 0.0, 0.0, 1.0], (0, 1, 2), 0.5) == 0
    assert quantile_of_bins([1.0, 0.0, 0.0, 2.0], (0, 1, 2), 0.5) == 2
    assert quantile_of_bins([0.0, 1.0, 0.0, 1.0, 0.0], (0, 1, 2, 3), 0.5) == 1  # half of them lie below 1
    assert math.isnan(quantile_of_bins([0.0, 0.0], (0,), 0.5))


def test_rollout_and_actor_are_compared_in_the_first_mini_batch_alone():
    """Later ones belong to a policy that has moved. The other numbers are means over the step's rows."""
    first = [0, 1, 2, 3, 4, 5]
    update = Update("defaults", lam=0.0, minibatch=[int(i not in first) for i in range(ON)])
    splits = [[[[0], [1, 2]], [[3, 4], [5]]], [[[6, 7, 8], [9]], [[10], [11]]]]
    found = update.reported(splits)
    expected = update.on_policy_definitions() | update.rollout_definitions(first)
    # Each mini-batch has its own denominator; the loss and the slope are per response, whatever the mini-batch.
    units = sum(any(mask) for mask in update.mask[:ON])
    sizes = [sum(any(update.mask[i]) for i in range(ON) if update.minibatch[i] == part) for part in (0, 1)]
    slope = sum(update.slope(i) * sizes[int(update.minibatch[i])] for i in range(ON)) / units
    expected |= {PREFIX + "on_policy_slope": slope, PREFIX + "preference_slope": 0.0}
    check(found, expected | {PREFIX + "on_policy_slope_share": 1.0})
    kept = Update("defaults", lam=0.0).reported([ON_SPLITS], compare_rollout=False)
    assert not any("rollout" in key for key in kept)


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_paper_and_released_log_the_same_slopes_in_the_first_step(lam):
    """pi_theta = pi_old, which is not pi_ref."""
    splits = [SPLITS if lam else ON_SPLITS]
    found = []
    SETTINGS["preset"] = {"divergence": "jensen_shannon"}
    try:
        for preset in ("paper", "released", "stable"):
            found.append(Update("preset", lam, preset=preset).reported(splits))
    finally:
        del SETTINGS["preset"]
    for name in ("on_policy_slope", "preference_slope", "on_policy_slope_share"):
        paper, released, stable = (values[PREFIX + name] for values in found)
        assert paper == pytest.approx(released, rel=1e-6)
        assert lam == 0 or paper != pytest.approx(stable, rel=1e-2)


# Of the driver alone: tests/host/driver/test_trainer.py and tests/e2e have them.
JOINED = {PREFIX + name for name in ("lam", "preference_share", "preference_cache_hits", "preference_epochs")}
JOINED.add("timing_s/join_preferences")


def test_the_table_names_what_is_logged_and_nothing_else():
    f_grpo, f_hal = (Update("defaults", lam).reported([splits]) for lam, splits in ((0.0, ON_SPLITS), (0.4, SPLITS)))
    rows = [TokenRow([1], [2], d, f"p{i // 2}", "") for i, d in enumerate(DESIRABLE)]
    held_out = held_out_metrics(rows, torch.arange(float(OFF)), FDivergenceConfig())
    held_out |= ranking_metrics(rows, -torch.rand(OFF, 1), torch.ones(OFF, 1))
    assert set(f_grpo) == {metric.name for metric in METRICS if not metric.f_hal_only}
    named = {metric.name for metric in METRICS}
    assert set(f_hal) | set(held_out) | JOINED == named and len(named) == len(METRICS)


def test_no_name_is_one_that_verl_would_not_average():
    """verl takes the largest, the smallest or the sum of a metric by what stands in its name."""
    for metric in METRICS:
        words = () if metric.name.startswith("timing_s/") else ("max", "min", "sum", "total")
        assert not any(word in metric.name for word in words), metric.name
        assert metric.formula and metric.unit and metric.healthy and metric.source and metric.outside
