"""f-GRPO's loss through verl's own ``ppo_loss``, against a plain loop over rows."""

import math

import numpy as np
import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host import metrics
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.host.replay_rows import NonFiniteUpdate
from tests.support import micro_batches
from tests.support.micro_batches import BETA, actor_config, loss_rows, run_loss


def _by_hand(rows, link, conjugate):
    """The paper's formula, one row at a time, in Python floats (weighting none)."""
    n, total = 0, 0.0
    for i, uid in enumerate(rows["uids"]):
        group = [rows["rewards"][j].item() for j in range(len(rows["uids"])) if rows["uids"][j] == uid]
        mean = sum(group) / len(group)
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
        a = 0.0 if max(group) == min(group) else (rows["rewards"][i].item() - mean) / (std + 1e-6)
        if rows["masks"][i].sum() == 0:
            continue
        n += 1
        start = rows["prompt_lengths"][i] - 1  # the log-prob of token t stands at position t - 1
        log_ratio = 0.0
        for t in range(rows["lengths"][i]):
            if rows["masks"][i][t]:
                log_ratio += rows["log_prob"][i][start + t].item() - rows["ref"][i][t].item()
        r = BETA * log_ratio
        total += abs(a) * (-link(r) if a > 0 else conjugate(r) if a < 0 else 0.0)
    return total / n / BETA  # scale unit: 1/beta


FORMULAS = {
    "pearson": (lambda v: v, lambda v: v + v * v / 4),
    "kl": (lambda v: v, lambda v: math.exp(v - 1)),
    "jensen_shannon": (
        lambda v: math.log(2) - math.log1p(math.exp(-v)),
        lambda v: math.log1p(math.exp(v)) - math.log(2),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_hosts_loss_is_the_papers_formula(name):
    rows = loss_rows()
    config = actor_config(divergence=name, beta=BETA, weighting="none")
    loss, _, _ = run_loss(rows, config, [list(range(12))])
    assert loss == pytest.approx(_by_hand(rows, *FORMULAS[name]), rel=1e-5)


@pytest.mark.parametrize("weighting", ["none", "softmax_is"])
@pytest.mark.parametrize("level", ["sequence", "sequence_mean", "token"])
@pytest.mark.parametrize("splits", [[[0, 1, 2, 3, 4], [5, 6], [8, 9, 10, 11, 7]], [[i] for i in range(12)]])
def test_neither_micro_batches_nor_order_change_loss_or_gradient(splits, level, weighting):
    config = actor_config(divergence="jensen_shannon", beta=BETA, weighting=weighting, level=level)
    loss, _, gradient = run_loss(loss_rows(), config, [list(range(12))])
    split_loss, _, split_gradient = run_loss(loss_rows(), config, splits)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    assert (split_gradient - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert gradient.abs().max() > 0


def test_two_ranks_average_to_one():
    config = actor_config(divergence="pearson", beta=BETA)
    loss, _, gradient = run_loss(loss_rows(), config, [list(range(12))])
    ranks = [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    rank_loss, _, rank_gradient = run_loss(loss_rows(), config, ranks, dp_size=2)
    assert rank_loss / 2 == pytest.approx(loss, rel=1e-5)
    assert (rank_gradient / 2 - gradient).abs().max() <= 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("field", ["log_prob", "ref", "advantage", "weight"])
def test_what_is_not_finite_is_refused_with_its_row(field, level, bad, monkeypatch):
    rows = loss_rows()
    if field == "log_prob":
        rows["log_prob"][4].data[rows["prompt_lengths"][4]] = bad
    elif field == "ref":
        rows["ref"][4][0] = bad
        rows["ref_log_prob"] = torch.nested.as_nested_tensor(rows["ref"], layout=torch.jagged)
    else:
        made = micro_batches.row_numbers

        def one_bad(**arguments):
            numbers, reported = made(**arguments)
            numbers[f"f_divergence_{field}"][4] = bad
            return numbers, reported

        monkeypatch.setattr(micro_batches, "row_numbers", one_bad)
    named = "log_prob, ref_log_prob or old_log_prob" if field in ("log_prob", "ref") else "advantages or weights"
    said = rf"^the loss of a mini-batch cannot be computed: {named} is not finite in 1 rows, the first of them \[2\]"
    with pytest.raises(NonFiniteUpdate, match=said):
        run_loss(rows, actor_config(beta=BETA, level=level), [[2, 3, 4, 5]])


def test_masked_rows_and_tokens_have_no_gradient():
    rows = loss_rows()
    run_loss(rows, actor_config(beta=BETA), [list(range(12))])
    assert rows["log_prob"][7].grad.abs().max() == 0
    assert rows["log_prob"][3].grad[rows["prompt_lengths"][3] - 1 + rows["lengths"][3] - 1] == 0


def test_gamma_adds_gradient_but_no_value_where_the_actor_is_pi_old():
    plain, _, plain_gradient = run_loss(
        loss_rows(), actor_config(beta=BETA, scale=[1, 1], weighting="none"), [list(range(12))]
    )
    settings = dict(beta=BETA, scale=[1, 1], weighting="none", gamma=BETA)
    value, _, gradient = run_loss(loss_rows(), actor_config(**settings), [list(range(12))])
    assert value == pytest.approx(plain, rel=1e-6)
    torch.testing.assert_close(gradient, 2 * plain_gradient)  # d r = (beta + gamma) d log pi
    recomputed, _, _ = run_loss(loss_rows(), actor_config(**settings, old_log_prob="recomputed"), [list(range(12))])
    assert recomputed != pytest.approx(plain, rel=1e-3)


def _reported(metrics):
    """What verl's reduction over micro-batches and our division on the driver make of the workers' metrics."""
    from verl.utils.metric import Metric

    merged: dict = {}
    for name in metrics[0]:
        if name.startswith("actor/f_divergence"):
            micro_batches = Metric(aggregation="mean")
            for part in metrics:
                micro_batches.extend(part[name])
            merged[name] = micro_batches.aggregate()
    return divide_sums(merged, FDivergenceConfig(divergence="pearson"), lam=0.0, compare_rollout=True)


def test_metrics_do_not_depend_on_the_split():
    def reduced(splits):
        return _reported(run_loss(loss_rows(), actor_config(divergence="pearson", beta=BETA), splits)[1])

    whole, split = reduced([list(range(12))]), reduced([[0], [1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        assert split[name] == pytest.approx(value, rel=1e-5), name
    assert "training/rollout_probs_diff_mean" in whole
    assert 0 < whole["training/rollout_probs_diff_mean"] < 1


@pytest.mark.parametrize("block", [1, 12, 2**16])
def test_rollout_and_reference_metrics_are_their_definitions(block, monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK_ON_CPU", block)
    rows = loss_rows()
    result = _reported(run_loss(rows, actor_config(beta=BETA), [list(range(12))])[1])
    tokens = [
        (row[start - 1 + t].item(), rows["ref"][i][t].item(), rows["old"][i][t].item())
        for i, (row, start) in enumerate(zip(rows["log_prob"], rows["prompt_lengths"], strict=True))
        for t in range(rows["lengths"][i])
        if rows["masks"][i][t]
    ]
    actor, reference, rollout = np.array(tokens).T
    difference = np.abs(np.exp(actor) - np.exp(rollout))
    expected = {
        "actor/f_divergence/reference_gap": np.abs(actor - reference).mean(),
        "actor/f_divergence/rollout_gap": np.abs(actor - rollout).mean(),
        "training/rollout_probs_diff_mean": difference.mean(),
        "training/rollout_probs_diff_std": difference.std(),
        "training/rollout_actor_probs_pearson_corr": np.corrcoef(np.exp(actor), np.exp(rollout))[0, 1],
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name
