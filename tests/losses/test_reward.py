"""The implicit reward by hand and by a loop, and its clip."""

import pytest
import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    clip_implicit_reward,
    f_grpo_row_losses,
    implicit_reward,
)
from tests.losses.cases import LEVELS, batch, loop_rewards, tensor


def test_implicit_reward_by_hand():
    log_prob = torch.tensor([[-1.0, -2.0, -5.0], [-1.0, -1.0, -1.0]])
    ref = torch.tensor([[-1.5, -4.0, 9.0], [-3.0, -1.0, -2.0]])
    old = torch.tensor([[-1.25, -2.25, 9.0], [-1.0, -1.0, -4.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    # Row 0: 0.5 + 2 = 2.5 from ref, 0.25 + 0.25 = 0.5 from old. Row 1: 2 + 0 + 1 = 3 and 3.
    close = torch.testing.assert_close
    close(implicit_reward(log_prob, ref, mask, 0.1), torch.tensor([0.25, 0.3]))
    both = dict(old_log_prob=old, gamma=2.0)
    close(implicit_reward(log_prob, ref, mask, 0.1, **both), torch.tensor([1.25, 6.3]))
    close(implicit_reward(log_prob, ref, mask, 0.1, level="sequence_mean"), torch.tensor([0.125, 0.1]))
    close(
        implicit_reward(log_prob, ref, mask, 0.1, **both, level="token"),
        torch.tensor([[0.05 + 0.5, 0.2 + 0.5, 0.0], [0.2, 0.0, 0.1 + 6.0]]),
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_implicit_reward_against_a_loop(level, gamma):
    log_prob, ref, old, mask, *_ = batch()
    result = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=gamma, level=level)
    rewards = loop_rewards(log_prob, ref, old, mask, 0.3, gamma, level)
    if level == "token":
        expected = torch.zeros_like(result)
        expected[mask.bool()] = tensor([r for row in rewards for r in row])
    else:
        expected = tensor([sum(row) for row in rewards])  # an empty row has reward 0
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson", "squared_hellinger", "jensen_shannon", "neyman"])
def test_a_row_out_of_range_is_clipped_and_harms_no_other(name):
    d = get_divergence(name)
    low, high = d.range
    huge = 2.0**99
    reward = torch.tensor([huge, -huge, 0.5, -0.5], requires_grad=True)
    clipped, mask = clip_implicit_reward(reward, d)
    assert mask.tolist() == [high < huge, low > -huge, False, False]
    for index, sign in ((0, 1), (1, -1)):
        for advantages in (
            tensor([1.0, 1.0, 1.0, 1.0]),
            tensor([-1.0, -1.0, -1.0, -1.0]),
            tensor([0.0, 0.0, 1.0, 1.0]),
        ):
            kept = [index, 2, 3]
            (gradient,) = torch.autograd.grad(f_grpo_row_losses(reward, advantages, d)[kept].sum(), reward)
            assert torch.isfinite(gradient).all()
            if mask[index] or advantages[index] == 0:
                assert gradient[index] == 0
            alone = torch.tensor([0.5, -0.5], requires_grad=True)
            (expected,) = torch.autograd.grad(f_grpo_row_losses(alone, advantages[2:], d).sum(), alone)
            torch.testing.assert_close(gradient[2:], expected)
        assert clipped[index].item() == pytest.approx(min(max(sign * huge, low), high))


def test_clip_limit_tightens_the_range_symmetrically():
    reward = torch.tensor([-9.0, -3.0, 2.0, 3.0, 50.0], requires_grad=True)
    d = get_divergence("pearson", "density_ratio")
    clipped, mask = clip_implicit_reward(reward, d, limit=3.0)
    assert clipped.tolist() == [-3, -3, 2, 3, 3] and mask.tolist() == [True, False, False, False, True]
    assert torch.autograd.grad(clipped.sum(), reward)[0].tolist() == [0, 1, 1, 1, 0]
    clipped, mask = clip_implicit_reward(reward, d, limit=1000.0)  # never wider than the divergence allows
    assert clipped.tolist() == [-9, -3, 2, 3, 44] and mask.tolist() == [False] * 4 + [True]
