"""f-HAL's loss through verl's own ``ppo_loss``, against a plain loop over rows."""

import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import SUMS
from fgrpo_plugin.host.driver.joining import as_queue_rows, preference_numbers
from fgrpo_plugin.host.driver.rows import on_policy_fields, row_numbers
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig
from fgrpo_plugin.preference.tokens import TokenRow

BETA, LAM = 0.3, 0.4
ON, OFF = 8, 6


def actor_config(mode="f_hal", lam=LAM, actor=None, **settings):
    from verl.workers.config import FSDPActorConfig

    settings = {"beta": BETA, "weighting": "none", **settings}
    policy_loss = FDivergencePolicyLossConfig(loss_mode=mode, f_divergence=FDivergenceConfig(lam=lam, **settings))
    return FSDPActorConfig(
        strategy="fsdp2",
        ppo_micro_batch_size_per_gpu=4,
        rollout_n=4,
        policy_loss=policy_loss,
        use_torch_compile=False,
        **(actor or {}),
    )


def nested(values):
    return torch.nested.as_nested_tensor(list(values), layout=torch.jagged)


class Batch:
    """ON on-policy and OFF preference rows, uneven in length, with the driver's numbers and log-probs."""

    def __init__(self, settings, lam=LAM, on=ON, off=OFF):
        generator = torch.Generator().manual_seed(0)
        length = lambda: int(torch.randint(1, 7, (1,), generator=generator))  # noqa: E731
        self.prompts = [length() for _ in range(on + off)]
        self.lengths = [length() for _ in range(on + off)]
        self.preferred = [False] * on + [True] * off
        self.rewards = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 0])[:on]
        self.preferences = [
            TokenRow([1] * self.prompts[i], [2] * self.lengths[i], i % 3 == 0, None, "") for i in range(on, on + off)
        ]
        self.reference = [-torch.rand(n, generator=generator) for n in self.lengths]
        self.old = [-torch.rand(n, generator=generator) for n in self.lengths]
        self.log_prob = [
            (-torch.rand(p + n, generator=generator)).requires_grad_()
            for p, n in zip(self.prompts, self.lengths, strict=True)
        ]
        self.rows = []
        if on:
            masks = torch.nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.int64) for n in self.lengths[:on]], True)
            numbers, _ = row_numbers(
                rewards=self.rewards,
                uids=[f"u{i // 4}" for i in range(on)],
                response_mask=masks,
                old_log_prob=None,
                minibatch=torch.zeros(on, dtype=torch.int64),
                padding=torch.zeros(on, dtype=torch.bool),
                settings=settings,
                normalize_by_std=False,
            )
            numbers |= on_policy_fields(on, lam)
            tokens = as_queue_rows(
                [TokenRow([1] * p, [2] * n, True, None, "") for p, n in zip(self.prompts, self.lengths, strict=True)][
                    :on
                ]
            )
            for i in range(on):
                row = {name: values[i] for name, values in (tokens | numbers).items()}
                ones = torch.ones(self.lengths[i], dtype=torch.int64)
                self.rows.append(row | {"response_mask": ones, "loss_mask": ones})
        if off:
            numbers = preference_numbers(self.preferences, settings, lam)
            fields = as_queue_rows(self.preferences, self.reference[on:]) | numbers
            self.rows += [{name: values[i] for name, values in fields.items()} for i in range(off)]
        for i, row in enumerate(self.rows):
            zeros = torch.zeros(self.lengths[i])
            row |= {"ref_log_prob": self.reference[i], "old_log_probs": self.old[i], "advantages": zeros}

    def run(self, config, splits, dp_size=1, entropy=False):
        from verl.utils import tensordict_utils as tu
        from verl.workers.utils import losses

        total, metrics = 0.0, []
        for row in self.log_prob:
            row.grad = None
        for select in splits:
            picked = [self.rows[i] for i in select]
            data = TensorDict(
                {
                    name: nested([row[name] for row in picked])
                    if picked[0][name].dim()
                    else torch.stack([row[name] for row in picked])
                    for name in picked[0]
                },
                batch_size=len(select),
            )
            tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=11, global_batch_size=ON)
            values = torch.cat([self.log_prob[i] for i in select])
            offsets = torch.tensor([0, *torch.tensor([len(self.log_prob[i]) for i in select]).cumsum(0).tolist()])
            output = {"log_probs": torch.nested.nested_tensor_from_jagged(values, offsets=offsets)}
            if entropy:
                output["entropy"] = torch.nested.nested_tensor_from_jagged(torch.ones_like(values), offsets=offsets)
            loss, extra = partial(losses.ppo_loss, config=config)(model_output=output, data=data)
            loss.backward()
            total += loss.item()
            metrics.append(extra)
        zero = lambda row: torch.zeros_like(row) if row.grad is None else row.grad  # noqa: E731
        return total, metrics, torch.cat([zero(row) for row in self.log_prob])

    def by_hand(self, link, conjugate, lam=LAM, gamma=0.0):
        """The paper's formula in Python floats: lam L_FDO + (1 - lam) L_fGRPO, over 1/beta.

        On-policy rows alone have a pi_old other than the policy, so gamma moves their r alone.
        """
        r = []
        for i, row in enumerate(self.log_prob):
            start = self.prompts[i] - 1
            r.append(BETA * sum(row[start + t].item() - self.reference[i][t].item() for t in range(self.lengths[i])))
            if not self.preferred[i]:
                r[i] += gamma * sum(row[start + t].item() - self.old[i][t].item() for t in range(self.lengths[i]))
        on = 0.0
        count = len([p for p in self.preferred if not p])
        for i in range(count):
            group = self.rewards[4 * (i // 4) : 4 * (i // 4) + 4].tolist()
            a = self.rewards[i].item() - sum(group) / 4
            on += abs(a) * (-link(r[i]) if a > 0 else conjugate(r[i]) if a < 0 else 0.0) / count
        above = [-link(r[i]) for i in range(count, len(r)) if self.preferences[i - count].desirable]
        below = [conjugate(r[i]) for i in range(count, len(r)) if not self.preferences[i - count].desirable]
        off = (sum(above) / len(above) + sum(below) / len(below)) if above else 0.0
        return (lam * off + (1 - lam) * on) / BETA


FORMULAS = {
    "pearson": (lambda v: v, lambda v: v + v * v / 4),
    "kl": (lambda v: v, lambda v: math.exp(v - 1)),
    "jensen_shannon": (
        lambda v: math.log(2) - math.log1p(math.exp(-v)),
        lambda v: math.log1p(math.exp(v)) - math.log(2),
    ),
}
WHOLE = [list(range(ON + OFF))]
SPLITS = [[0], [8, 1, 2, 9, 3], [10, 11, 12], [4, 5], [6, 7, 13]]  # all on-policy, mixed, all preference rows


@pytest.mark.parametrize("divergence", FORMULAS)
def test_the_loss_is_lambda_of_fdo_and_the_rest_of_f_grpo(divergence):
    config = actor_config(divergence=divergence)
    batch = Batch(config.policy_loss.f_divergence)
    value, _, _ = batch.run(config, WHOLE)
    assert value == pytest.approx(batch.by_hand(*FORMULAS[divergence]), rel=1e-5)


@pytest.mark.parametrize("preference_gamma", [0.0, 0.2])
def test_a_recomputed_pi_old_is_of_on_policy_rows_alone(preference_gamma):
    settings = dict(gamma=0.7, preference_gamma=preference_gamma, scale=[1 / BETA, 1.0])
    config = actor_config(old_log_prob="recomputed", **settings)
    batch = Batch(config.policy_loss.f_divergence)
    value, _, gradient = batch.run(config, WHOLE)
    assert value == pytest.approx(batch.by_hand(*FORMULAS["pearson"], gamma=0.7), rel=1e-5)
    first = sum(len(row) for row in batch.log_prob[:ON])
    plain = batch.run(actor_config(scale=[1 / BETA, 1.0]), WHOLE)[2]
    torch.testing.assert_close(gradient[first:], (BETA + preference_gamma) / BETA * plain[first:])
    assert batch.run(actor_config(**settings), WHOLE)[0] == pytest.approx(batch.by_hand(*FORMULAS["pearson"]), rel=1e-5)


@pytest.mark.parametrize("level", ["sequence", "sequence_mean", "token"])
def test_nothing_depends_on_micro_batches_order_or_ranks(level):
    config = actor_config(level=level)
    batch = Batch(config.policy_loss.f_divergence)
    value, metrics, gradient = batch.run(config, WHOLE)
    reported = _reported(metrics)
    for splits in (SPLITS, [list(reversed(WHOLE[0]))], [[i] for i in WHOLE[0]]):
        other, parts, other_gradient = batch.run(config, splits)
        assert other == pytest.approx(value, rel=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-5, atol=1e-7)
        for name, number in _reported(parts).items():
            assert number == pytest.approx(reported[name], rel=1e-4, abs=1e-6), name
    # Two ranks: the engines average over ranks, so each one's loss is twice its part.
    _, _, two = batch.run(config, SPLITS, dp_size=2)
    torch.testing.assert_close(two, 2 * gradient, rtol=1e-5, atol=1e-7)


def test_without_preference_rows_it_is_f_grpo_to_the_last_bit():
    ours, plain = actor_config(lam=0.0), actor_config(mode="f_grpo", lam=0.0)
    batch = Batch(ours.policy_loss.f_divergence, lam=0.0, off=0)
    splits = [[0, 3, 5], [1, 2, 4, 6, 7]]
    value, _, gradient = batch.run(ours, splits)
    expected, _, expected_gradient = batch.run(plain, splits)
    assert value == expected and torch.equal(gradient, expected_gradient) and gradient.abs().sum() > 0


def test_one_row_on_each_side_is_divided_by_one():
    config = actor_config()
    batch = Batch(config.policy_loss.f_divergence, off=2)
    assert {row.desirable for row in batch.preferences} == {True, False}
    value, _, _ = batch.run(config, [list(range(ON + 2))])
    assert value == pytest.approx(batch.by_hand(*FORMULAS["pearson"]), rel=1e-5)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_side_whose_rows_have_no_token_adds_nothing(level):
    config = actor_config(level=level)
    batch = Batch(config.policy_loss.f_divergence, off=2)
    row = next(row for row in batch.rows[ON:] if row["f_divergence_side"] > 0)
    value, _, _ = batch.run(config, [[i for i in range(ON + 2) if batch.rows[i] is not row]])
    row["f_divergence_tokens"] *= 0
    row["f_divergence_count"] *= 0
    empty, metrics, gradient = batch.run(config, [list(range(ON + 2))])
    assert empty == pytest.approx(value, rel=1e-6) and torch.isfinite(gradient).all()
    sums = _merged(metrics, lambda name: "desirable_rows" in name)
    assert sums == {f"{SUMS}desirable_rows": 0.0, f"{SUMS}undesirable_rows": 1.0}


def test_at_lambda_one_it_is_fdo_alone():
    config = actor_config(lam=1.0)
    batch = Batch(config.policy_loss.f_divergence, lam=1.0, on=0)
    value, metrics, gradient = batch.run(config, [[0, 1], [2, 3, 4, 5]])
    assert value == pytest.approx(batch.by_hand(*FORMULAS["pearson"], lam=1.0), rel=1e-5)
    assert all(math.isfinite(number) for number in _reported(metrics).values())
    assert gradient.abs().sum() > 0


def test_kl_and_entropy_terms_and_the_hosts_metrics_see_on_policy_rows_alone():
    terms = {"use_kl_loss": True, "kl_loss_coef": 0.5, "entropy_coeff": 0.1}
    config = actor_config(actor=terms, lam=1e-9)
    batch = Batch(config.policy_loss.f_divergence, lam=1e-9)
    mixed = _host_metrics(batch.run(config, WHOLE, entropy=True)[1])
    pure = _host_metrics(batch.run(config, [list(range(ON))], entropy=True)[1])
    assert set(mixed) == set(pure) and "kl_loss" in mixed and "actor/entropy_loss" in mixed
    for name, value in pure.items():
        assert mixed[name] == pytest.approx(value, rel=1e-5), name


def test_preference_metrics_are_their_definitions():
    config = actor_config()
    batch = Batch(config.policy_loss.f_divergence)
    found = _reported(batch.run(config, SPLITS)[1])
    distance = {True: [], False: []}
    for i in range(ON, ON + OFF):
        start = batch.prompts[i] - 1
        gap = sum(batch.log_prob[i][start + t].item() - batch.reference[i][t].item() for t in range(batch.lengths[i]))
        distance[batch.preferences[i - ON].desirable].append(gap)
    above, below = (torch.tensor(distance[side]) for side in (True, False))
    link, conjugate = FORMULAS["pearson"]
    expected = {
        "preference_distance_desirable": above.mean(),
        "preference_distance_undesirable": below.mean(),
        "preference_implicit_reward_margin": BETA * (above.mean() - below.mean()),
        "preference_accuracy": ((above > 0).sum() + (below < 0).sum()) / OFF,
        "preference_desirable_share": len(above) / OFF,
        "preference_divergence_estimate": link(BETA * above).mean() - conjugate(BETA * below).mean(),
        "preference_loss": conjugate(BETA * below).mean() - link(BETA * above).mean(),
        "preference_clipped_share": 0.0,
    }
    for name, value in expected.items():
        assert found[f"actor/f_divergence/{name}"] == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
    for side in ("desirable", "undesirable"):
        low, high = (found[f"actor/f_divergence/preference_distance_{side}_{q}"] for q in ("p05", "p95"))
        assert low <= found[f"actor/f_divergence/preference_distance_{side}"] <= high


def test_preference_gamma_adds_gradient_to_preference_rows_alone():
    plain, more = actor_config(), actor_config(preference_gamma=BETA)
    batch = Batch(plain.policy_loss.f_divergence)
    value, _, gradient = batch.run(plain, WHOLE)
    same, _, steeper = batch.run(more, WHOLE)
    first = sum(len(row) for row in batch.log_prob[:ON])
    assert same == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(steeper[:first], gradient[:first])
    torch.testing.assert_close(steeper[first:], 2 * gradient[first:])


def _merged(metrics, wanted):
    from verl.utils.metric import Metric

    merged = {}
    for name in metrics[0]:
        assert all(name in part for part in metrics)  # a metric that some micro-batches lack breaks verl
        if not wanted(name) or not isinstance(metrics[0][name], Metric):
            continue
        micro_batches = Metric(aggregation=metrics[0][name].aggregation)
        for part in metrics:
            micro_batches.extend(part[name])
        merged[name] = float(micro_batches.aggregate())
    return merged


def _reported(metrics):
    sums = _merged(metrics, lambda name: name.startswith("actor/f_divergence"))
    return divide_sums(sums, FDivergenceConfig(divergence="pearson"), lam=LAM, compare_rollout=True)


def _host_metrics(metrics):
    return _merged(metrics, lambda name: not name.startswith("actor/f_divergence"))
