"""f-GRPO's loss through verl's own ``ppo_loss``, against a plain loop over rows."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host import metrics
from fgrpo_plugin.host.driver.rows import minibatch_of_row, row_numbers
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig

BETA = 0.3


def _actor_config(**settings):
    from verl.workers.config import FSDPActorConfig

    policy_loss = FDivergencePolicyLossConfig(loss_mode="f_grpo", f_divergence=FDivergenceConfig(**settings))
    return FSDPActorConfig(
        strategy="fsdp2", ppo_micro_batch_size_per_gpu=4, rollout_n=4, policy_loss=policy_loss, use_torch_compile=False
    )


def _rows(n=12, seed=0, gamma_old=False):
    """Rows as the host's queue holds them: nested, each of its own length, two of them fully masked."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (n,), generator=generator).tolist()
    prompts = torch.randint(1, 4, (n,), generator=generator).tolist()
    masks = [torch.ones(length, dtype=torch.int64) for length in lengths]
    masks[3][-1] = 0  # a masked token inside a row
    masks[7][:] = 0  # a row that the host has masked altogether

    def tokens():
        return [-torch.rand(length, generator=generator) for length in lengths]

    nested = lambda rows: torch.nested.as_nested_tensor(rows, layout=torch.jagged)  # noqa: E731
    rewards = (torch.rand(n, generator=generator) > 0.5).float()
    rewards[0], rewards[1] = 0.0, 1.0
    uids = np.array([f"prompt{i // 4}" for i in range(n)], dtype=object)
    old, ref = tokens(), tokens()
    return dict(
        lengths=lengths,
        prompts=nested([torch.ones(p, dtype=torch.int64) for p in prompts]),
        responses=nested([torch.ones(length, dtype=torch.int64) for length in lengths]),
        response_mask=nested(masks),
        old_log_probs=nested(old),
        ref_log_prob=nested(ref),
        prompt_lengths=prompts,
        masks=masks,
        old=old,
        ref=ref,
        rewards=rewards,
        uids=uids,
        log_prob=[
            (-torch.rand(p + length, generator=generator)).requires_grad_()
            for p, length in zip(prompts, lengths, strict=True)
        ],
    )


def _batch(rows, settings, select, minibatch):
    """The micro-batch that a worker gets, with the numbers that the driver attaches."""
    padded = lambda values: torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # noqa: E731
    numbers, _ = row_numbers(
        rewards=rows["rewards"],
        uids=rows["uids"],
        response_mask=padded(rows["masks"]),
        old_log_prob=padded(rows["old"]),
        minibatch=minibatch,
        padding=torch.zeros(len(minibatch), dtype=torch.bool),
        settings=settings,
        normalize_by_std=True,
    )
    nested = lambda values: torch.nested.as_nested_tensor([values[i] for i in select], layout=torch.jagged)  # noqa: E731
    fields = {
        "prompts": nested(rows["prompts"].unbind()),
        "responses": nested(rows["responses"].unbind()),
        "response_mask": nested(rows["masks"]),
        "old_log_probs": nested(rows["old"]),
        "ref_log_prob": nested(rows["ref"]),
        "advantages": nested([torch.full((length,), 9.0) for length in rows["lengths"]]),  # must not be read
        **{name: values[select] for name, values in numbers.items()},
    }
    return TensorDict(fields, batch_size=len(select))


def _run(rows, config, splits, dp_size=1, minibatch=None):
    """Sum of the host's ``ppo_loss`` over micro-batches, its metrics, and the gradient."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils import losses

    loss_fn = partial(losses.ppo_loss, config=config)
    total, metrics = 0.0, []
    for row in rows["log_prob"]:
        row.grad = None
    minibatch = torch.zeros(len(rows["lengths"]), dtype=torch.int64) if minibatch is None else minibatch
    for select in splits:
        data = _batch(rows, config.policy_loss.f_divergence, select, minibatch)
        tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=10**6, global_batch_size=10**6)
        values = torch.cat([rows["log_prob"][i] for i in select])
        offsets = torch.tensor([0, *np.cumsum([len(rows["log_prob"][i]) for i in select])])
        log_probs = torch.nested.nested_tensor_from_jagged(values, offsets=offsets)
        loss, extra = loss_fn(model_output={"log_probs": log_probs}, data=data)
        loss.backward()
        total += loss.item()
        metrics.append(extra)
    return total, metrics, torch.cat([row.grad for row in rows["log_prob"]])


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
    rows = _rows()
    config = _actor_config(divergence=name, beta=BETA, weighting="none")
    loss, _, _ = _run(rows, config, [list(range(12))])
    assert loss == pytest.approx(_by_hand(rows, *FORMULAS[name]), rel=1e-5)


@pytest.mark.parametrize("weighting", ["none", "softmax_is"])
@pytest.mark.parametrize("level", ["sequence", "sequence_mean", "token"])
@pytest.mark.parametrize("splits", [[[0, 1, 2, 3, 4], [5, 6], [8, 9, 10, 11, 7]], [[i] for i in range(12)]])
def test_neither_micro_batches_nor_order_change_loss_or_gradient(splits, level, weighting):
    config = _actor_config(divergence="jensen_shannon", beta=BETA, weighting=weighting, level=level)
    loss, _, gradient = _run(_rows(), config, [list(range(12))])
    split_loss, _, split_gradient = _run(_rows(), config, splits)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    assert (split_gradient - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert gradient.abs().max() > 0


def test_two_ranks_average_to_one():
    config = _actor_config(divergence="pearson", beta=BETA)
    loss, _, gradient = _run(_rows(), config, [list(range(12))])
    ranks = [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    rank_loss, _, rank_gradient = _run(_rows(), config, ranks, dp_size=2)
    assert rank_loss / 2 == pytest.approx(loss, rel=1e-5)
    assert (rank_gradient / 2 - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_masked_rows_and_tokens_have_no_gradient():
    rows = _rows()
    _run(rows, _actor_config(beta=BETA), [list(range(12))])
    assert rows["log_prob"][7].grad.abs().max() == 0
    assert rows["log_prob"][3].grad[rows["prompt_lengths"][3] - 1 + rows["lengths"][3] - 1] == 0


def test_gamma_adds_gradient_but_no_value_where_the_actor_is_pi_old():
    plain, _, plain_gradient = _run(
        _rows(), _actor_config(beta=BETA, scale=[1, 1], weighting="none"), [list(range(12))]
    )
    settings = dict(beta=BETA, scale=[1, 1], weighting="none", gamma=BETA)
    value, _, gradient = _run(_rows(), _actor_config(**settings), [list(range(12))])
    assert value == pytest.approx(plain, rel=1e-6)
    torch.testing.assert_close(gradient, 2 * plain_gradient)  # d r = (beta + gamma) d log pi
    recomputed, _, _ = _run(_rows(), _actor_config(**settings, old_log_prob="recomputed"), [list(range(12))])
    assert recomputed != pytest.approx(plain, rel=1e-3)


def _reported(metrics):
    """What the host's reduction over micro-batches and our division on the driver make of the workers' metrics."""
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
        return _reported(_run(_rows(), _actor_config(divergence="pearson", beta=BETA), splits)[1])

    whole, split = reduced([list(range(12))]), reduced([[0], [1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        assert split[name] == pytest.approx(value, rel=1e-5), name
    assert "training/rollout_probs_diff_mean" in whole
    assert 0 < whole["training/rollout_probs_diff_mean"] < 1


@pytest.mark.parametrize("block", [1, 12, 2**16])
def test_rollout_and_reference_metrics_are_their_definitions(block, monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK_ON_CPU", block)
    rows = _rows()
    result = _reported(_run(rows, _actor_config(beta=BETA), [list(range(12))])[1])
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


def test_a_loss_that_took_our_place_is_noticed_in_the_worker(monkeypatch):
    from verl.trainer.ppo import core_algos

    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "f_grpo", core_algos.compute_policy_loss_vanilla)
    with pytest.raises(RuntimeError, match="in place of our loss"):
        _run(_rows(), _actor_config(), [list(range(12))])
    with pytest.raises(ValueError, match="has replaced ours"):
        FDivergencePolicyLossConfig(loss_mode="vanilla")
    with pytest.raises(RuntimeError, match="another loss"):
        divide_sums({"actor/pg_loss": 1.0}, FDivergenceConfig(divergence="kl"), lam=0.0, compare_rollout=True)


def test_minibatch_of_row_is_where_the_hosts_iterator_puts_it():
    from verl.utils import tensordict_utils as tu

    rows, per_minibatch, dp_size = 24, 8, 2
    expected = torch.empty(rows, dtype=torch.int64)
    for rank, share in enumerate(torch.arange(rows).chunk(dp_size)):
        data = TensorDict({"row": share}, batch_size=len(share))
        iterator = tu.make_iterator(
            data, mini_batch_size=per_minibatch // dp_size, epochs=1, seed=rank, dataloader_kwargs={"shuffle": False}
        )
        for index, batch in enumerate(iterator):
            expected[batch["row"]] = index
    assert torch.equal(minibatch_of_row(rows, per_minibatch, dp_size), expected)


def test_denominators_count_each_minibatch_apart():
    rows = _rows()
    minibatch = torch.tensor([0] * 6 + [1] * 6)
    data = _batch(rows, FDivergenceConfig(), list(range(12)), minibatch)
    assert data["f_divergence_count"].tolist() == [6.0] * 6 + [5.0] * 6  # row 7 is fully masked
    assert data["f_divergence_fresh"].tolist() == [1.0] * 6 + [0.0] * 6
    tokens = _batch(rows, FDivergenceConfig(level="token"), list(range(12)), minibatch)["f_divergence_count"]
    assert tokens[0] == sum(int(mask.sum()) for mask in rows["masks"][:6])


def test_the_stock_trainer_is_what_other_algorithms_get():
    from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls

    from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer

    for mode in ("sync", "colocate_async", "separate_async"):
        assert issubclass(get_trainer_cls(mode), FDivergenceTrainer)
    made = []

    class Stock(PPOTrainerSync):
        def __init__(self, config):
            made.append(type(self))

    ours = type("Ours", (FDivergenceTrainer, Stock), {"stock": Stock})
    ours(OmegaConf.create({"algorithm": {"adv_estimator": "grpo"}}))
    ours(OmegaConf.create({"algorithm": {"adv_estimator": "f_grpo", "f_divergence_validated": True}}))
    users = type("Users", (ours,), {})
    users(OmegaConf.create({"algorithm": {"adv_estimator": "grpo"}}))
    assert made == [Stock, ours, users]
    with pytest.raises(ValueError, match="without validation"):
        ours(OmegaConf.create({"algorithm": {"adv_estimator": "f_grpo"}}))


def test_several_outputs_of_one_session_are_refused():
    from fgrpo_plugin.host.driver.rows import refuse_several_outputs

    refuse_several_outputs(["uid_0_0", "uid_1_0", "pad12_3_0"])
    with pytest.raises(ValueError, match="one output a session"):
        refuse_several_outputs(["uid_0_0", "uid_0_1"])
