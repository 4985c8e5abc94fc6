"""What a micro-batch asks of a device, by count: operations, and how often verl waits for it."""

import pytest
import torch

from benchmarks.loss import OURS, hosts, ours, ours_f_hal, tensors
from benchmarks.operations import Counted, count

MOST = 2
"""Synchronisations of a micro-batch: to see that all is finite, and for the sums."""


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: x[0].item(), "_local_scalar_dense"),
        (lambda x: float(x[0]), "_local_scalar_dense"),
        (lambda x: bool(x[0] > 0), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: torch.tensor([1.0, 2.0]), "tensor"),
    ],
)
def test_what_makes_the_host_wait_is_counted(call, name):
    with Counted() as counted:
        call(torch.arange(3.0))
    assert counted.synchronisations == {name: 1}


def test_operations_are_counted_in_both_directions_and_views_are_none():
    found = count(lambda x: (2 * x).unsqueeze(0).expand(4, -1, -1).detach().sum() + x.exp().sum(), torch.ones(2, 3))
    assert found.synchronisations.total() == 0
    assert found.operations["exp"] == 1 and found.operations["mul"] == 2  # of 2 x, and exp's gradient
    assert not {"unsqueeze", "expand", "detach", "view"} & set(found.operations)


@pytest.mark.parametrize("make", [ours, ours_f_hal])
@pytest.mark.parametrize("extra", [{}, {"implicit_reward_clip": 0.01}, {"old_log_prob": "recomputed", "gamma": 1.0}])
@pytest.mark.parametrize("name", OURS)
def test_a_micro_batch_synchronises_twice(name, extra, make):
    data = tensors(12, 8, torch.float32, "cpu")
    loss = make(data, OURS[name] | extra)
    loss(data["log_prob"])  # what is made once a process
    assert count(loss, data["log_prob"]).synchronisations.total() <= MOST


def test_f_grpo_makes_no_more_operations_than_grpo():
    data = tensors(12, 8, torch.float32, "cpu")
    totals = [
        count(loss, data["log_prob"]).operations.total()
        for loss in (ours(data, {}), ours_f_hal(data, {}), hosts(data, "vanilla", "token-mean"))
    ]
    assert totals[0] <= totals[2] and totals[1] <= 1.5 * totals[2]
