"""Slopes of rows by hand."""

import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    f_grpo_loss,
    row_slopes,
)


def test_slopes_of_tokens_of_both_signs_add_up_and_an_expanded_gradient_is_taken():
    # pearson: (f*.g)'(r) = 1 + r/2, which is -1 at r = -4 and 1 at r = 0.
    reward, mask = torch.tensor([[-4.0, 0.0]], requires_grad=True), torch.ones(1, 2)
    loss = f_grpo_loss(reward, torch.tensor([-1.0]), get_divergence("pearson"), response_mask=mask)
    assert row_slopes(loss, reward).tolist() == [1.0]  # two of 1, over two tokens
    plain = torch.tensor([1.0, -2.0], requires_grad=True)
    assert row_slopes(-plain.sum(), plain).tolist() == [1.0, 1.0]
