"""f-GRPO's rows by hand, and its first gradient against GRPO's."""

import pytest
import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    f_grpo_loss,
    f_grpo_row_losses,
    fdo_row_losses,
    implicit_reward,
)
from tests.losses.cases import batch, tensor


def test_row_losses_by_hand():
    reward, advantages = tensor([2.0, -1.0, 5.0]), tensor([0.5, -3.0, 0.0])
    pearson = get_divergence("pearson")
    # -0.5 * 2 * 4 = -4; +3 * 1 * (-1 + 1/4) = -2.25; nothing.
    rows = f_grpo_row_losses(reward, advantages, pearson, tensor([4.0, 1.0, 9.0]))
    torch.testing.assert_close(rows, tensor([-4.0, -2.25, 0.0]))
    # -2; -1 + 1/4; 5 + 25/4.
    rows = fdo_row_losses(reward, torch.tensor([True, False, False]), pearson)
    torch.testing.assert_close(rows, tensor([-2.0, -0.75, 11.25]))


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("reverse_kl", "variational"),
        ("pearson", "variational"),
        ("neyman", "variational"),
        ("squared_hellinger", "variational"),
        ("kl", "density_ratio"),
        ("reverse_kl", "density_ratio"),
    ],
)
def test_first_gradient_is_that_of_grpo(name, link):
    """With unit slopes, 1/(beta+gamma) L has at pi = pi_old = pi_ref the gradient of seq-mean-token-sum GRPO."""
    log_prob, _, _, mask, advantages, _ = batch()
    mask[0, 0] = 1
    log_prob.requires_grad_()
    same = log_prob.detach()
    reward = implicit_reward(log_prob, same, mask, 0.1, old_log_prob=same, gamma=0.5)
    (ours,) = torch.autograd.grad(f_grpo_loss(reward, advantages, get_divergence(name, link)) / 0.6, log_prob)
    ratio = torch.exp(log_prob - same)
    (grpo,) = torch.autograd.grad((-advantages.unsqueeze(-1) * ratio * mask).sum(-1).mean(), log_prob)
    torch.testing.assert_close(ours, grpo)
