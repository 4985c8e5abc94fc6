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
