"""The examples at the head of the mathematics give the numbers that stand there."""

import doctest

import pytest
import torch

import fgrpo_plugin.advantages
import fgrpo_plugin.divergences
import fgrpo_plugin.losses


@pytest.mark.parametrize("module", [fgrpo_plugin.divergences, fgrpo_plugin.advantages, fgrpo_plugin.losses])
def test_the_examples_of_a_module(module):
    torch.set_printoptions(profile="default")
    found = doctest.testmod(module)
    assert found.attempted >= 2 and found.failed == 0
