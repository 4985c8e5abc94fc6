"""Both losses against loops and finite differences; masked values, the split and the order of rows change nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    f_grpo_loss,
    f_hal_loss,
    fdo_loss,
    implicit_reward,
)
from tests.losses.cases import LEVELS, batch, loop_rewards, tensor

# g and f*(g) in plain Python, from the definitions of the divergences.
LINKS = {
    ("kl", "variational"): (lambda v: v, lambda v: math.exp(v - 1)),
    ("pearson", "variational"): (lambda v: v, lambda v: v + v * v / 4),
    ("squared_hellinger", "variational"): (lambda v: 1 - math.exp(-v), lambda v: math.exp(v) - 1),
    ("jensen_shannon", "variational"): (
        lambda v: math.log(2 / (1 + math.exp(-v))),
        lambda v: -math.log(2 / (1 + math.exp(v))),
    ),
    ("total_variation", "variational"): (lambda v: math.tanh(v) / 2, lambda v: math.tanh(v) / 2),
    ("jeffreys", "density_ratio"): (lambda u: u + 1 - math.exp(-u), lambda u: math.exp(u) + u - 1),
}


def loop_f_grpo(rewards, advantages, weights, g, conjugate_of_g):
    """Sum over what counts, and how much counts."""
    total = 0.0
    for row, a, w in zip(rewards, advantages.tolist(), weights.tolist(), strict=True):
        for r in row:
            if a > 0:
                total += abs(a) * -w * g(r)
            elif a < 0:
                total += abs(a) * w * conjugate_of_g(r)
    return total, sum(len(row) for row in rewards)


def loop_fdo(rewards, desirable, g, conjugate_of_g):
    aligned = [-g(r) for row, good in zip(rewards, desirable, strict=True) if good for r in row]
    unaligned = [conjugate_of_g(r) for row, good in zip(rewards, desirable, strict=True) if not good for r in row]
    return aligned, unaligned


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", LINKS)
@pytest.mark.parametrize("given", [False, True])
def test_losses_against_a_loop(level, key, given):
    log_prob, ref, old, mask, advantages, weights = batch()
    d = get_divergence(*key)
    reward = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=0.7, level=level)
    rewards = loop_rewards(log_prob, ref, old, mask, 0.3, 0.7, level)
    total, count = loop_f_grpo(rewards, advantages, weights, *LINKS[key])
    loss = f_grpo_loss(reward, advantages, d, weights, response_mask=mask, denominator=11 if given else None)
    assert loss.item() == pytest.approx(total / (11 if given else count))
    unweighted, _ = loop_f_grpo(rewards, advantages, torch.ones(len(mask)), *LINKS[key])
    assert f_grpo_loss(reward, advantages, d, response_mask=mask).item() == pytest.approx(unweighted / count)

    desirable = advantages > 0
    aligned, unaligned = loop_fdo(rewards, desirable.tolist(), *LINKS[key])
    counts = (4, 9) if given else (len(aligned), len(unaligned))
    loss = fdo_loss(reward, desirable, d, response_mask=mask, denominator=counts if given else None)
    assert loss.item() == pytest.approx(sum(aligned) / counts[0] + sum(unaligned) / counts[1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", [*LINKS, ("pearson_restricted", None), ("neyman", None), ("gan", None)])
def test_gradient_against_finite_differences(level, key):
    log_prob, ref, old, mask, advantages, weights = batch(n=4, tokens=3)
    d = get_divergence(*key)

    def both(log_prob):
        reward = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=0.7, level=level)
        on = f_grpo_loss(reward, advantages, d, weights, response_mask=mask)
        return on + fdo_loss(reward, advantages > 0.2, d, response_mask=mask)

    assert torch.autograd.gradcheck(both, log_prob.requires_grad_())


@pytest.mark.parametrize("level", LEVELS)
def test_masked_garbage_changes_nothing(level):
    *policies, mask, advantages, weights = batch()
    d = get_divergence("squared_hellinger")

    def run(log_prob, ref, old):
        log_prob = log_prob.clone().requires_grad_()
        reward = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=0.7, level=level)
        if level == "token":
            reward = torch.where(mask.bool(), reward, log_prob)  # so that garbage reaches the losses too
        loss = f_grpo_loss(reward, advantages, d, weights, response_mask=mask)
        loss = loss + fdo_loss(reward, advantages > 0, d, response_mask=mask)
        return loss, *torch.autograd.grad(loss, log_prob)

    loss, gradient = run(*policies)
    for garbage in (math.nan, math.inf, -1e300):
        dirty = [torch.where(mask.bool(), values, garbage) for values in policies]
        dirty_loss, dirty_gradient = run(*dirty)
        assert torch.equal(dirty_loss, loss) and torch.equal(dirty_gradient, gradient)
    assert gradient[mask == 0].eq(0).all() and gradient[mask == 1].ne(0).any()


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_micro_batches_add_up(level, parts):
    log_prob, ref, _, mask, advantages, weights = batch()
    d = get_divergence("squared_hellinger")
    desirable = advantages > 0
    per_row = mask.sum(-1) if level == "token" else mask.any(-1)
    denominator = per_row.sum().item()
    sides = (per_row[desirable].sum().item(), per_row[~desirable].sum().item())

    def run(rows, denominator, sides):
        reward = implicit_reward(log_prob[rows], ref[rows], mask[rows], 0.3, level=level)
        on = f_grpo_loss(reward, advantages[rows], d, weights[rows], response_mask=mask[rows], denominator=denominator)
        return on + fdo_loss(reward, desirable[rows], d, response_mask=mask[rows], denominator=sides)

    log_prob.requires_grad_()
    whole = run(range(7), None, None)
    split = sum(run([i for i in range(7) if parts[i] == part], denominator, sides) for part in set(parts))
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(whole, log_prob)
    torch.testing.assert_close(torch.autograd.grad(split, log_prob)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", [*LINKS, ("neyman", None), ("kl", "density_ratio")])
def test_micro_batches_and_order_in_float32(level, key):
    """f-HAL, both halves with the whole step's counts: 1e-5 of the largest component over the whole gradient."""
    log_prob, ref, _, mask, advantages, weights = batch(n=48, tokens=64, dtype=torch.float32)
    advantages, weights, desirable = advantages.float(), weights.float(), advantages > 0
    d = get_divergence(*key)
    per_row = mask.sum(-1) if level == "token" else mask.any(-1)
    denominator, sides = per_row.sum().item(), tuple(per_row[side].sum().item() for side in (desirable, ~desirable))

    def gradient(*parts):
        leaf = log_prob.clone().requires_grad_()
        for rows in parts:
            reward = implicit_reward(leaf[rows], ref[rows], mask[rows], 0.1, level=level)
            both = dict(response_mask=mask[rows])
            on = f_grpo_loss(reward, advantages[rows], d, weights[rows], denominator=denominator, **both)
            off = fdo_loss(reward, desirable[rows], d, denominator=sides, **both)
            f_hal_loss(off, on, 0.3).backward()
        return leaf.grad

    whole = gradient(torch.arange(48))
    shuffled = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    for parts in (shuffled.split(5), [shuffled], torch.arange(48).split(1)):
        assert (gradient(*parts) - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(7)))
def test_order_of_rows_changes_nothing(level, order):
    log_prob, ref, _, mask, advantages, weights = batch()
    d = get_divergence("squared_hellinger")

    def losses(rows):
        reward = implicit_reward(log_prob[rows], ref[rows], mask[rows], 0.3, level=level)
        return torch.stack(
            [
                f_grpo_loss(reward, advantages[rows], d, weights[rows], response_mask=mask[rows]),
                fdo_loss(reward, advantages[rows] > 0, d, response_mask=mask[rows]),
            ]
        )

    torch.testing.assert_close(losses(order), losses(list(range(7))), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_what_does_not_count_gives_zero_with_a_gradient_path(level):
    log_prob, ref, _, mask, advantages, weights = batch()
    d = get_divergence("kl")  # f*(g(0)) is not 0, so an uncounted row would show
    log_prob.requires_grad_()

    def check(mask, advantages, desirable, denominator):
        reward = implicit_reward(log_prob, ref, mask, 0.3, level=level)
        sides = None if denominator is None else (denominator, denominator)
        for loss in (
            f_grpo_loss(reward, advantages, d, weights, response_mask=mask, denominator=denominator),
            fdo_loss(reward, desirable, d, response_mask=mask, denominator=sides) if desirable is not None else None,
        ):
            if loss is not None:
                assert loss.item() == 0
                assert torch.autograd.grad(loss, log_prob, retain_graph=True)[0].eq(0).all()

    nothing = torch.zeros_like(mask)
    for denominator in (None, 5, 0):
        check(nothing, advantages, advantages > 0, denominator)
    check(mask, torch.zeros_like(advantages), None, None)
    # Rows 0 (no token) and 2 (advantage 0) are never touched; row 2 counts, row 0 does not.
    reward = implicit_reward(log_prob, ref, mask, 0.3, level=level)
    (gradient,) = torch.autograd.grad(f_grpo_loss(reward, advantages, d, response_mask=mask), log_prob)
    assert gradient[[0, 2]].eq(0).all() and gradient[1].ne(0).any()


def test_one_sided_and_empty_batches():
    d = get_divergence("pearson")
    reward = tensor([1.0, 2.0])
    assert fdo_loss(reward, torch.tensor([True, True]), d).item() == -1.5
    assert fdo_loss(reward, torch.tensor([False, False]), d).item() == (1.25 + 3) / 2
    assert fdo_loss(reward, torch.tensor([True, True]), d, denominator=(2, 0)).item() == -1.5
    empty = torch.zeros(0, dtype=torch.float64)
    assert f_grpo_loss(empty, empty, d).item() == 0
    assert fdo_loss(empty, empty.bool(), d).item() == 0


def test_only_the_policy_gets_gradient():
    tensors = [values.requires_grad_() for values in batch()[:3]]
    _, _, _, mask, advantages, weights = batch()
    advantages.requires_grad_()
    weights.requires_grad_()
    reward = implicit_reward(*tensors[:2], mask, 0.3, old_log_prob=tensors[2], gamma=0.7)
    f_grpo_loss(reward, advantages, get_divergence("kl"), weights, response_mask=mask).backward()
    assert tensors[0].grad is not None
    assert all(values.grad is None for values in (*tensors[1:], advantages, weights))
