"""What the driver computes of the queue's rows without padding them, against loops over padded ones."""

import numpy as np
import pytest
import torch

from fgrpo_plugin.advantages import group_weights
from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver import rows
from fgrpo_plugin.host.driver.rows import row_numbers, row_sums

LENGTHS = [5, 1, 9, 3, 7, 2, 4, 6]
UIDS = np.array([f"p{i // 4}" for i in range(8)], dtype=object)


def _rows():
    generator = torch.Generator().manual_seed(0)
    values = [-3 * torch.rand(length, generator=generator) for length in LENGTHS]
    masks = [(torch.rand(length, generator=generator) > 0.3).long() for length in LENGTHS]
    masks[3].zero_()  # a row of verl's own padding
    for row, mask in zip(values, masks, strict=True):
        row[mask == 0] = float("nan")
    return values, masks


def _nested(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _padded(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.mark.parametrize("block", [1, 3, 7, 256])
def test_row_sums_of_nested_and_padded_rows_are_those_of_a_loop(monkeypatch, block):
    monkeypatch.setattr(rows, "_BLOCK_ROWS", block)
    values, masks = _rows()
    kept = [row[mask.bool()].tolist() for row, mask in zip(values, masks, strict=True)]
    expected = [sum(row) for row in kept]
    for form in (_nested, _padded):
        assert row_sums(form(values), form(masks)).tolist() == pytest.approx(expected)
        assert row_sums(form(masks)).tolist() == [int(mask.sum()) for mask in masks]


@pytest.mark.parametrize("weight_level", ["token_mean", "sequence"])
@pytest.mark.parametrize("form", [_nested, _padded])
def test_the_weights_are_those_of_whole_padded_rows(weight_level, form):
    values, masks = _rows()
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.9, 0.2, 0.8, 0.7, 0.1])
    fields, _ = row_numbers(
        rewards=rewards,
        uids=UIDS,
        response_mask=form(masks),
        old_log_prob=form(values),
        minibatch=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        padding=torch.zeros(8, dtype=torch.bool),
        settings=FDivergenceConfig(weight_level=weight_level),
        normalize_by_std=True,
    )
    expected = group_weights(
        rewards, UIDS, "softmax_is", _padded(values), _padded(masks), old_log_prob_level=weight_level
    )
    torch.testing.assert_close(fields["f_divergence_weight"], expected)
    assert len(set(expected.tolist())) > 2
    assert fields["f_divergence_count"].tolist() == [3] * 4 + [4] * 4


@pytest.mark.parametrize(
    "rewards, old",
    [
        ([0.5] * 4, [-1.0] * 4),  # no group has a signal
        ([0.0, 0.5, 1.0, 0.5], [-1.0, -900.0, -1.0, -900.0]),  # the responses at the mean take all weight
    ],
)
def test_without_weight_on_any_response_the_effective_share_is_zero(rewards, old):
    fields, metrics = row_numbers(
        rewards=torch.tensor(rewards),
        uids=np.array(["a"] * 4, dtype=object),
        response_mask=torch.ones(4, 1),
        old_log_prob=torch.tensor(old).unsqueeze(-1),
        minibatch=torch.zeros(4, dtype=torch.int64),
        padding=torch.zeros(4, dtype=torch.bool),
        settings=FDivergenceConfig(preset="paper"),
        normalize_by_std=True,
    )
    assert fields["f_divergence_weight"].tolist() == [0.0] * 4
    assert metrics["actor/f_divergence/weight_effective_sample_share"] == 0.0


def test_responses_whose_weight_vanishes_count_in_the_effective_share():
    """One response has all the weight of pi_old; the other three are weighed as nothing, and are there all the same."""
    fields, metrics = row_numbers(
        rewards=torch.tensor([0.0, 1.0, 0.0, 1.0]),
        uids=np.array(["a"] * 4, dtype=object),
        response_mask=torch.ones(4, 1),
        old_log_prob=torch.tensor([[-1.0], [-1.0], [-900.0], [-1.0]]),
        minibatch=torch.zeros(4, dtype=torch.int64),
        padding=torch.zeros(4, dtype=torch.bool),
        settings=FDivergenceConfig(preset="paper"),
        normalize_by_std=True,
    )
    assert fields["f_divergence_weight"].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert metrics["actor/f_divergence/weight_effective_sample_share"] == 0.25
