"""FDO with jensen_shannon is binary cross-entropy."""

import math

import torch

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    fdo_loss,
)
from tests.losses.cases import tensor


def test_jensen_shannon_fdo_is_binary_cross_entropy():
    # log-sigmoid losses on the logit r, each side's mean, shifted by 2 log 2.
    reward, labels = tensor([0.3, -2.0, 1.5, 0.7]), torch.tensor([True, False, True, False])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(reward[labels], torch.ones(2).double()) + bce(reward[~labels], torch.zeros(2).double())
    loss = fdo_loss(reward, labels, get_divergence("jensen_shannon"))
    torch.testing.assert_close(loss, expected - 2 * math.log(2))
    torch.testing.assert_close(fdo_loss(reward, labels, get_divergence("gan")), expected)
