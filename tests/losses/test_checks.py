"""What the losses refuse, by name, and the precision in which they compute."""

import math

import pytest
import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    clip_implicit_reward,
    f_grpo_loss,
    f_hal_loss,
    fdo_loss,
    implicit_reward,
)
from fgrpo_plugin.losses.checks import finite_extremes
from tests.losses.cases import LEVELS, batch


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision_is_computed_in_float32(level):
    log_prob, ref, old, mask, advantages, weights = batch(dtype=torch.bfloat16)
    d = get_divergence("squared_hellinger")

    def run(cast):
        leaf = cast(log_prob).requires_grad_()
        reward = implicit_reward(leaf, cast(ref), mask, 0.3, old_log_prob=cast(old), gamma=0.7, level=level)
        loss = f_grpo_loss(reward, advantages, d, weights, response_mask=mask)
        return reward, loss, torch.autograd.grad(loss, leaf)[0]

    reward, loss, gradient = run(torch.clone)
    wide_reward, wide_loss, wide_gradient = run(torch.Tensor.float)
    assert reward.dtype == loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert torch.equal(reward, wide_reward) and torch.equal(loss, wide_loss)
    assert torch.equal(gradient, wide_gradient.bfloat16())
    short = reward.detach().bfloat16()
    assert torch.equal(
        f_grpo_loss(short, advantages, d, response_mask=mask),
        f_grpo_loss(short.float(), advantages, d, response_mask=mask),
    )


X = torch.zeros(2, 3)
R = torch.zeros(2)
B = torch.tensor([True, False])
D = get_divergence("kl")
BAD = torch.tensor([0.0, math.nan])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit_reward(X, X, X, 0.0), "beta=0.0 must be positive"),
        (lambda: implicit_reward(X, X, X, math.nan), "beta=nan"),
        (lambda: implicit_reward(X, X, X, math.inf), "beta=inf"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=-1.0), r"^gamma=-1.0 must be >= 0"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=math.inf, old_log_prob=X), r"^gamma=inf must be >= 0"),
        (lambda: clip_implicit_reward(torch.tensor([0.0, math.inf]), D), r"not finite in 1 rows, .* \[1\]"),
        (lambda: clip_implicit_reward(torch.tensor([-math.inf, 0.0]), D), r"not finite in 1 rows, .* \[0\]"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=1.0), "old_log_prob=None with gamma=1.0"),
        (lambda: implicit_reward(X, X, X, 0.1, level="row"), "unknown level='row'"),
        (lambda: implicit_reward(R, R, R, 0.1), r"log_prob must have shape \(n, T\), got \(2,\)"),
        (lambda: implicit_reward(X, X[:1], X, 0.1), r"ref_log_prob has shape \(1, 3\), which must be \(2, 3\)"),
        (lambda: implicit_reward(X, X, X[:, :1], 0.1), r"response_mask has shape \(2, 1\)"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=1.0, old_log_prob=R), r"old_log_prob has shape \(2,\)"),
        (lambda: implicit_reward(X, X + BAD[:, None], X + 1, 0.1), r"not finite in 1 rows, the first of them \[1\]"),
        (lambda: implicit_reward(X, X + BAD[:, None], X + 1, 0.1, level="token"), r"first of them \[1\]"),
        (lambda: clip_implicit_reward(BAD, D), r"implicit_reward is not finite in 1 rows.*\[1\]"),
        (lambda: clip_implicit_reward(R, D, 0.0), "limit=0.0 must be positive"),
        (lambda: f_grpo_loss(BAD, R, D), r"implicit_reward is not finite in 1 rows.*\[1\]"),
        (lambda: f_grpo_loss(R - torch.inf, R, D), r"implicit_reward is not finite in 2 rows"),
        (lambda: f_grpo_loss(R, BAD, D), "advantages or weights is not finite"),
        (lambda: f_grpo_loss(R, R, D, BAD), "advantages or weights is not finite"),
        (lambda: f_grpo_loss(R, R[:1], D), r"advantages has shape \(1,\), which must be \(2,\)"),
        (lambda: f_grpo_loss(R, R, D, X), r"weights has shape \(2, 3\)"),
        (lambda: f_grpo_loss(R, R, D, response_mask=X[:1]), r"response_mask \(1, 3\) must be \(n, T\) with n = 2"),
        (lambda: f_grpo_loss(X, R, D), "level token requires it"),
        (lambda: f_grpo_loss(X, R, D, response_mask=X[:, :2]), r"response_mask has shape \(2, 2\)"),
        (lambda: f_grpo_loss(X[None], R, D), r"implicit_reward must have shape \(n,\) or \(n, T\), got \(1, 2, 3\)"),
        (lambda: f_grpo_loss(R, R, D, denominator=0), "denominator=0.0 must be positive"),
        (lambda: f_grpo_loss(R, R, D, denominator=-2), "denominator=-2.0 must be positive"),
        (lambda: f_grpo_loss(R, R, D, denominator=math.nan), "denominator=nan"),
        (lambda: fdo_loss(BAD, B, D), r"implicit_reward is not finite in 1 rows.*\[1\]"),
        (lambda: fdo_loss(R, B.float(), D), "desirable must be a bool tensor, got torch.float32"),
        (lambda: fdo_loss(R, B[:1], D), r"desirable has shape \(1,\)"),
        (lambda: fdo_loss(X, B, D), "level token requires it"),
        (lambda: fdo_loss(R, B, D, denominator=2), "denominator=2 must be a pair"),
        (lambda: fdo_loss(R, B, D, denominator=(1, 0)), "denominator=0.0 must be positive"),
        (lambda: f_hal_loss(R[0], R[0], 1.5), "lam=1.5 must lie in"),
        (lambda: f_hal_loss(R[0], R[0], -0.1), "lam=-0.1 must lie in"),
        (lambda: f_hal_loss(R[0], R[0], math.nan), "lam=nan"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_extremes_are_the_smallest_and_the_largest_and_huge_numbers_are_finite():
    assert finite_extremes("r", torch.tensor([[2.0, -3.0], [7.0, 0.0]]), {"a": R}) == (-3.0, 7.0)
    largest = torch.finfo(torch.float32).max
    huge = torch.full((4,), largest)
    assert finite_extremes("r", -huge, {"a": huge}) == (-largest, -largest)  # whose sum is infinite
    assert finite_extremes("r", torch.zeros(0, 3), {"a": torch.zeros(0)}) == (0, 0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_extremes_name_what_is_not_finite_and_its_rows(bad, shape):
    reward, advantages = torch.zeros(shape), torch.zeros(5)
    reward[3] = advantages[1] = bad
    with pytest.raises(ValueError, match=r"^r is not finite in 1 rows, the first of them \[3\]"):
        finite_extremes("r", reward)
    with pytest.raises(ValueError, match=r"^a is not finite in 1 rows, the first of them \[1\]"):
        finite_extremes("r", torch.zeros(shape), {"w": torch.zeros(5), "a": advantages})
    mixed = torch.tensor([math.inf, 0.0, -math.inf])  # whose sum is not a number, though none of them is NaN
    with pytest.raises(ValueError, match=r"^a is not finite in 2 rows, the first of them \[0, 2\]"):
        finite_extremes("r", torch.zeros(3), {"a": mixed})
