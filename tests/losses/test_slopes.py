"""Slopes of rows by hand."""

import pytest
import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    f_grpo_loss,
    row_slopes,
)
from fgrpo_plugin.losses.slopes import differentiated_once


def test_slopes_of_tokens_of_both_signs_add_up_and_an_expanded_gradient_is_taken():
    # pearson: (f*.g)'(r) = 1 + r/2, which is -1 at r = -4 and 1 at r = 0.
    reward, mask = torch.tensor([[-4.0, 0.0]], requires_grad=True), torch.ones(1, 2)
    loss = f_grpo_loss(reward, torch.tensor([-1.0]), get_divergence("pearson"), response_mask=mask)
    assert row_slopes(loss, reward).tolist() == [1.0]  # two of 1, over two tokens
    plain = torch.tensor([1.0, -2.0], requires_grad=True)
    assert row_slopes(-plain.sum(), plain).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_differentiated_once_is_the_same_loss_with_the_same_bits_of_gradient(shape):
    draw = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(shape, generator=draw, requires_grad=True)
    advantages, divergence = torch.randn(6, generator=draw), get_divergence("jensen_shannon")

    def loss_of(reward):
        mask = torch.ones(6, 3) if reward.dim() == 2 else None
        return 0.7 * f_grpo_loss(reward, advantages, divergence, response_mask=mask)

    reward = 0.3 * log_ratio
    plain = loss_of(reward)
    (expected,) = torch.autograd.grad(plain, log_ratio, retain_graph=True)
    (expected_slope,) = torch.autograd.grad(plain, reward)
    reward = 0.3 * log_ratio
    leaf = reward.detach().requires_grad_()
    loss, slope = differentiated_once(loss_of(leaf), leaf, reward)
    assert torch.equal(loss, plain) and torch.equal(slope, expected_slope)
    loss -= 0.5 * log_ratio.sum()  # verl adds its terms in place
    (2 * loss).backward()
    torch.testing.assert_close(log_ratio.grad, 2 * (expected - 0.5))
    loss, _ = differentiated_once(loss_of(leaf), leaf, 0.3 * log_ratio)
    assert torch.equal(torch.autograd.grad(loss, log_ratio)[0], expected)
    with torch.no_grad():
        assert not differentiated_once(*_with_gradient(loss_of, leaf), 0.3 * log_ratio)[0].requires_grad


def _with_gradient(loss_of, leaf):
    with torch.enable_grad():
        return loss_of(leaf), leaf


def test_differentiated_once_cannot_be_differentiated_twice():
    reward = torch.tensor([1.0, 2.0], requires_grad=True)
    leaf = reward.detach().requires_grad_()
    loss, _ = differentiated_once(leaf.square().sum(), leaf, reward)
    (gradient,) = torch.autograd.grad(loss * loss, reward, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
