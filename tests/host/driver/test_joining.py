"""Where preference rows go, and what they carry there."""

from collections import Counter

import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import ENGINE_FIELDS
from fgrpo_plugin.host.driver import joining
from fgrpo_plugin.host.driver.joining import as_queue_rows, deal, joined_order, preference_numbers, queue_blocks
from fgrpo_plugin.host.driver.rows import minibatch_of_row
from fgrpo_plugin.preference.tokens import TokenRow
from tests.support.preference_rows import rows


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_gets_as_many_rows_of_each_side_and_couples_stay_together(ranks):
    data = rows(64)
    dealt = deal(data, ranks)
    assert Counter(id(row) for rank in dealt for row in rank) == Counter(map(id, data))
    tokens = []
    for rank in dealt:
        assert sum(row.desirable for row in rank) == len(rank) / 2 == 64 / ranks / 2
        assert all(a.pair == b.pair for a, b in zip(rank[::2], rank[1::2], strict=True))
        tokens.append(sum(len(row.prompt_ids + row.response_ids) for row in rank))
    assert max(tokens) < 1.1 * min(tokens)


def test_dealing_looks_at_every_row_a_bounded_number_of_times(monkeypatch):
    counted = []
    monkeypatch.setattr(joining, "_tokens", lambda couple: counted.append(1) or sum(len(row.ids) for row in couple))
    deal(rows(512), 4)
    assert len(counted) <= 512  # two a couple; it was the square of the rows


@pytest.mark.parametrize("ranks, minibatches, part, per_rank", [(1, 1, 6, 2), (2, 3, 4, 4), (4, 2, 2, 6), (2, 1, 5, 1)])
def test_every_mini_batch_of_every_rank_has_both_halves_where_the_host_trains_them(ranks, minibatches, part, per_rank):
    on_policy = ranks * minibatches * part
    order = joined_order(on_policy, minibatches, ranks, per_rank)
    on = [index for kind, index in order if kind == "on"]
    assert on == list(range(on_policy))  # verl's own order is kept
    assert sorted(index for kind, index in order if kind == "off") == list(range(ranks * minibatches * per_rank))
    joined = minibatch_of_row(len(order), len(order) // minibatches, ranks)
    alone = minibatch_of_row(on_policy, ranks * part, ranks)
    share = len(order) // ranks
    for place, (kind, index) in enumerate(order):
        rank, minibatch = place // share, int(joined[place])
        if kind == "on":
            assert minibatch == alone[index] and rank == index // (on_policy // ranks)
        else:  # drawn mini-batch by mini-batch, and dealt rank by rank
            assert (minibatch, rank) == divmod(index // per_rank, ranks)
    # Mixed: no half of a mini-batch lacks preference rows where there are two or more.
    if per_rank >= 2:
        first = [kind for kind, _ in order[: (part + per_rank) // 2 + 1]]
        assert {"on", "off"} == set(first)


def test_rows_are_in_the_hosts_form_and_invisible_to_its_terms():
    data = rows(4)
    reference = [-torch.rand(len(row.response_ids)) for row in data]
    fields = as_queue_rows(data, reference)
    for name in ENGINE_FIELDS:
        assert fields[name].is_nested, name
    for i, row in enumerate(data):
        assert fields["input_ids"][i].tolist() == row.prompt_ids + row.response_ids
        assert fields["position_ids"][i].tolist() == list(range(len(row.prompt_ids + row.response_ids)))
        assert fields["prompts"][i].tolist() == row.prompt_ids
        assert fields["responses"][i].tolist() == row.response_ids
        assert torch.equal(fields["ref_log_prob"][i], reference[i])
        for name in ("response_mask", "loss_mask"):
            assert fields[name][i].tolist() == [0] * len(row.response_ids)


def test_a_large_batch_is_put_into_the_queue_in_blocks_that_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(joining, "BLOCK_ROWS", 3)
    data = rows(8)
    reference = [-torch.rand(row.response_length) for row in data]
    numbers = {"f_divergence_side": torch.arange(8.0)}
    seen = []
    for block, fields in queue_blocks(data, reference, numbers):
        for place, row in enumerate(data[block]):
            assert fields["input_ids"][place].tolist() == row.prompt_ids + row.response_ids
            assert torch.equal(fields["ref_log_prob"][place], reference[block][place])
        seen += fields["f_divergence_side"].tolist()
    assert seen == list(range(8))


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_each_side_is_divided_by_its_own_count(level):
    data = [TokenRow([1], [2] * length, side, None, "") for length, side in ((3, True), (2, False), (1, False))]
    numbers = preference_numbers(data, FDivergenceConfig(level=level), lam=0.25)
    assert numbers["f_divergence_count"].tolist() == ([3, 3, 3] if level == "token" else [1, 2, 2])
    assert numbers["f_divergence_side"].tolist() == [1, -1, -1]
    assert numbers["f_divergence_tokens"].tolist() == [3, 2, 1]
    assert numbers["f_divergence_lam"].tolist() == [0.25] * 3
    assert numbers["f_divergence_fresh"].tolist() == [0, 0, 0]
