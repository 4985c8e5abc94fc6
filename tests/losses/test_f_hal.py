"""f-HAL mixes the two losses, and is the one loss itself at either end."""

import math

import pytest
import torch

from fgrpo_plugin.losses import (
    f_hal_loss,
)
from tests.losses.cases import tensor


@pytest.mark.parametrize("lam", [0, 0.0, 0.25, 1.0])
def test_f_hal_mixes(lam):
    preference, on_policy = tensor(3.0), tensor(-1.0)
    assert f_hal_loss(preference, on_policy, lam).item() == lam * 3.0 - (1 - lam)


def test_f_hal_at_the_ends_is_the_one_loss_bit_for_bit():
    loss, other = torch.rand(()), torch.tensor(math.nan)
    assert torch.equal(f_hal_loss(other, loss, 0.0), loss)
    assert torch.equal(f_hal_loss(loss, other, 1.0), loss)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_a_lambda_that_stays_on_the_device_gives_the_same_bits_and_gradient(lam):
    """lambda comes with the rows in float32, whatever the losses are in."""
    lam = torch.tensor(lam)
    for dtype in (torch.float32, torch.float64):
        losses = [torch.tensor([0.7, -1.3], dtype=dtype, requires_grad=True) for _ in range(2)]
        read, kept = (f_hal_loss(*values, form) for values, form in zip(losses, (float(lam), lam), strict=True))
        assert kept.dtype == dtype and torch.equal(read, kept)
        for value, leaf in ((read, losses[0]), (kept, losses[1])):
            value.backward()
            assert leaf.grad[0] == float(lam)
        assert torch.equal(losses[0].grad, losses[1].grad)
    away = torch.tensor(0.5, device="meta")  # holds no number that could be read
    assert f_hal_loss(away, away, away).is_meta
