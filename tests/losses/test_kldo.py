"""KLDO: special cases are in tests/test_special_cases.py; here its edges."""

import math

import pytest
import torch

from fgrpo_plugin.losses import (
    kldo_loss,
)
from tests.test_special_cases import LOG2, donsker_varadhan


def test_kldo_of_one_side_alone_has_a_finite_gradient():
    for side in (True, False):
        reward = torch.tensor([0.3, -0.2], requires_grad=True)
        loss = kldo_loss(reward, torch.tensor([side, side]))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(reward.grad).all() and reward.grad.abs().sum() > 0


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_kldo_micro_batches_add_up_given_the_whole_steps_constant(level):
    draw = torch.Generator().manual_seed(0)
    rewards = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    mask = (torch.rand(9, 4, generator=draw) < 0.7).long()
    mask[:, 0], mask[3] = 1, 0
    if level == "sequence":
        rewards = rewards[:, 0]
    rewards.requires_grad_()
    sides = torch.tensor([True, False, False, False, True, True, False, True, False])
    counted = mask.any(-1) if level == "sequence" else mask.bool()
    side = sides if level == "sequence" else sides.unsqueeze(-1).expand(9, 4)
    chosen, rejected = rewards[counted & side], rewards[counted & ~side]
    counts = (len(chosen), len(rejected))
    whole = kldo_loss(rewards, sides, response_mask=mask)
    assert whole.item() == pytest.approx(donsker_varadhan(chosen.tolist(), rejected.tolist()))
    constant = rejected.detach().logsumexp(0) - math.log(len(rejected))

    def part(rows, log_mean_exp):
        return kldo_loss(
            rewards[rows], sides[rows], response_mask=mask[rows], denominator=counts, log_mean_exp=log_mean_exp
        )

    for parts in ([[0, 1, 2], [3, 4], [5, 6, 7, 8]], [[i] for i in range(9)]):
        split = sum(part(rows, constant) for rows in parts)
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
        (expected,) = torch.autograd.grad(whole, rewards, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(split, rewards)[0], expected, rtol=0, atol=1e-12)


def test_kldo_ignores_masked_garbage_and_upcasts():
    rewards, sides = torch.tensor([0.5, -1.0, 2.0, 0.25]), torch.tensor([True, False, False, True])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]])
    clean = kldo_loss(rewards[[0, 1, 3]], sides[[0, 1, 3]])
    for garbage in (math.nan, math.inf, -math.inf):
        dirty = torch.where(mask.any(-1), rewards, garbage).requires_grad_()
        loss = kldo_loss(dirty, sides, response_mask=mask)
        assert torch.equal(loss, clean) and torch.autograd.grad(loss, dirty)[0][2] == 0
    short = kldo_loss(rewards.bfloat16(), sides)
    assert short.dtype == torch.float32 and torch.equal(short, kldo_loss(rewards, sides))


def test_kldo_splits_in_float32_and_in_any_order():
    draw = torch.Generator().manual_seed(0)
    rewards, sides = torch.randn(64, generator=draw), torch.rand(64, generator=draw) < 0.4
    constant = rewards[~sides].logsumexp(0) - math.log((~sides).sum())
    counts = (int(sides.sum()), int((~sides).sum()))

    def gradient(*parts):
        leaf = rewards.clone().requires_grad_()
        for rows in parts:
            kldo_loss(leaf[rows], sides[rows], denominator=counts, log_mean_exp=constant).backward()
        return leaf.grad

    leaf = rewards.clone().requires_grad_()
    (whole,) = torch.autograd.grad(kldo_loss(leaf, sides), leaf)
    for parts in (torch.arange(64).split(7), torch.randperm(64, generator=draw).split(10)):
        assert (gradient(*parts) - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_kldo_with_one_side_in_float32_and_at_large_rewards():
    both = torch.tensor([True, True]), torch.tensor([False, False])
    reward = torch.tensor([1.0, 3.0])
    assert kldo_loss(reward, both[0]).item() == -2
    expected = math.log((math.e + math.e**3) / 2)
    assert kldo_loss(reward, both[1]).item() == pytest.approx(expected)
    assert kldo_loss(reward, both[1], log_mean_exp=expected).item() == pytest.approx(expected)
    huge = torch.tensor([500.0, -500.0, 400.0], requires_grad=True)
    loss = kldo_loss(huge, torch.tensor([True, False, False]))
    assert loss.item() == pytest.approx(-500 + 400 - LOG2)
    assert torch.autograd.grad(loss, huge)[0].tolist() == pytest.approx(
        [-1, 0, 1], abs=1e-4
    )  # c carries 400's rounding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"denominator": (1, 1)}, "log_mean_exp=None with a denominator: .*couples all D- rows"),
        ({"log_mean_exp": math.nan}, "log_mean_exp=nan must be finite"),
        ({"denominator": 2, "log_mean_exp": 0.0}, "denominator=2 must be a pair"),
        ({"desirable": torch.ones(2)}, "desirable must be a bool tensor"),
        ({"implicit_reward": torch.tensor([0.0, math.inf])}, "implicit_reward is not finite"),
    ],
)
def test_kldo_refusals(arguments, message):
    given = {"implicit_reward": torch.zeros(2), "desirable": torch.tensor([True, False])} | arguments
    with pytest.raises(ValueError, match=message):
        kldo_loss(given.pop("implicit_reward"), given.pop("desirable"), **given)
