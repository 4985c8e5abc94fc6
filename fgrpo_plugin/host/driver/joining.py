"""Joins f-HAL's preference rows to the batch on which verl updates the actor."""

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import wrapt

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import ENGINE_FIELDS, PREFERENCE_FIELDS, ROW_FIELDS
from fgrpo_plugin.preference.tokens import TokenRow

BLOCK_ROWS = 512  # preference rows that are put into verl's queue at a time


def join_batch(
    batch: Any,
    drawn: Sequence[Sequence[Sequence[TokenRow]]],
    reference: Sequence[torch.Tensor],
    settings: FDivergenceConfig,
    lam: float,
) -> tuple[Any, list[str]]:
    """Put preference rows into verl's queue and among the rows of its batch, in every mini-batch of every rank.

    Args:
        batch: verl's KVBatchMeta.
        drawn: for each mini-batch, for each rank, its rows.
        reference: log pi_ref of each row's response tokens, in the order of ``drawn``.
        settings: hyper-parameters.
        lam: lambda of the step.

    Returns:
        The batch that the actor is to see, and the keys of the preference rows.
    """
    import transfer_queue as tq
    from tensordict import TensorDict
    from transfer_queue import KVBatchMeta

    minibatches, ranks = len(drawn), len(drawn[0])
    rows = [row for minibatch in drawn for rank in minibatch for row in rank]
    parts = [preference_numbers([row for rank in part for row in rank], settings, lam) for part in drawn]
    numbers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    keys = new_keys(len(rows))
    tags = [{"seq_len": len(row.ids)} for row in rows]
    for block, fields in queue_blocks(rows, reference, numbers):
        fields = TensorDict(fields, batch_size=len(keys[block]))
        tq.kv_batch_put(keys=keys[block], partition_id="train", fields=fields, tags=tags[block])
    order = joined_order(len(batch), minibatches, ranks, len(drawn[0][0]))
    sources = {"on": (batch.keys, batch.tags), "off": (keys, tags)}
    joined = KVBatchMeta(
        keys=[sources[kind][0][index] for kind, index in order],
        tags=[sources[kind][1][index] for kind, index in order],
        partition_id="train",
        fields=[*ENGINE_FIELDS, *ROW_FIELDS, *PREFERENCE_FIELDS],
        extra_info=batch.extra_info | {"mini_batch_size": len(order) // minibatches},
    )
    return joined, keys


class JoiningGroup(wrapt.ObjectProxy):
    """The actor's workers, wrapped so that an update gets the joined batch in place of verl's."""

    def __init__(self, group: Any, join: Callable[[Any], Any]):
        super().__init__(group)
        self._self_join = join

    def update_actor(self, batch: Any) -> Any:
        return self.__wrapped__.update_actor(self._self_join(batch))


def deal(rows: Sequence[TokenRow], ranks: int) -> list[list[TokenRow]]:
    """Assign drawn rows to ranks: as many D+ as D- rows and about as many tokens on each, a pair on one rank.

    Args:
        rows: D+ and D- in turn, as drawn; a multiple of 2 * ranks.
        ranks: > 0.
    """
    pairs = sorted(zip(rows[::2], rows[1::2], strict=True), key=_tokens, reverse=True)
    assigned: list[list[TokenRow]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for first in range(0, len(pairs), ranks):
        hand = pairs[first : first + ranks]
        # The longest pair goes to the rank that has the fewest tokens so far.
        for pair, rank in zip(hand, sorted(range(ranks), key=tokens.__getitem__), strict=True):
            assigned[rank] += pair
            tokens[rank] += _tokens(pair)
    return assigned


def joined_order(on_policy: int, minibatches: int, ranks: int, per_rank: int) -> list[tuple[str, int]]:
    """Return which row stands where in the actor's batch: ("on", i) or ("off", i).

    verl assigns each rank a contiguous chunk and walks through it in mini-batches, so the preference rows of rank k
    and mini-batch j are mixed evenly into rank k's j-th part.

    Args:
        on_policy: rows of verl's batch, a multiple of ranks * minibatches.
        minibatches: optimiser steps of this update.
        ranks: data-parallel size.
        per_rank: preference rows of one rank in one mini-batch; row i of them is counted mini-batch by mini-batch,
            rank by rank.
    """
    part = on_policy // ranks // minibatches
    order: list[tuple[str, int]] = []
    for rank in range(ranks):
        for minibatch in range(minibatches):
            mine = (rank * minibatches + minibatch) * part
            theirs = (minibatch * ranks + rank) * per_rank
            places = [((i + 0.5) / part, "on", mine + i) for i in range(part)]
            places += [((i + 0.5) / per_rank, "off", theirs + i) for i in range(per_rank)]
            order += [(kind, index) for _, kind, index in sorted(places)]
    return order


def as_queue_rows(rows: Sequence[TokenRow], reference: Sequence[torch.Tensor] | None = None) -> dict[str, Any]:
    """Rows in the form of verl's queue: nested tensors, one component a row.

    Their response_mask and loss_mask are 0, so that nothing of verl (KL and entropy terms, token counts) sees them;
    our loss takes their response tokens from ``f_divergence_tokens``.

    Args:
        rows: token rows.
        reference: log pi_ref of the response tokens; None while it is still to be computed.
    """
    # One allocation a field, and one for all fields of zeros of a kind: making tensors row by row takes far longer.
    whole, responses = [len(row.ids) for row in rows], [row.response_length for row in rows]
    positions = np.arange(max(whole))
    nothing = _nested(np.zeros(sum(responses), dtype=np.int64), responses)
    fields = {
        "prompts": _nested(_joined(row.ids[: row.prompt_length] for row in rows), [row.prompt_length for row in rows]),
        "responses": _nested(_joined(row.ids[row.prompt_length :] for row in rows), responses),
        "input_ids": _nested(_joined(row.ids for row in rows), whole),
        "position_ids": _nested(_joined(positions[:length] for length in whole), whole),
        "response_mask": nothing,
        "loss_mask": nothing,
    }
    if reference is not None:
        zeros = _nested(np.zeros(sum(responses), dtype=np.float32), responses)
        log_probs = _nested(torch.cat(list(reference)), responses)
        fields |= {"ref_log_prob": log_probs, "old_log_probs": zeros, "advantages": zeros}
    return fields


def queue_blocks(
    rows: Sequence[TokenRow], reference: Sequence[torch.Tensor], numbers: Mapping[str, torch.Tensor]
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Rows in the form of verl's queue, a chunk at a time: a whole large batch would fill the driver's memory.

    Args:
        rows: n rows.
        reference: log pi_ref of each row's response tokens.
        numbers: name -> (n,), as `preference_numbers` gives them.

    Yields:
        Which rows, and their fields.
    """
    for start in range(0, len(rows), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        attached = {name: values[block] for name, values in numbers.items()}
        yield block, as_queue_rows(rows[block], reference[block]) | attached


def _joined(rows: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(rows), dtype=np.int64)


def _nested(values: np.ndarray | torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """A nested tensor, of the values of all rows one after another."""
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    return torch.nested.nested_tensor_from_jagged(torch.as_tensor(values), offsets)


def preference_numbers(rows: Sequence[TokenRow], settings: FDivergenceConfig, lam: float) -> dict[str, torch.Tensor]:
    """Return what each row of a mini-batch carries: ``ROW_FIELDS`` and ``PREFERENCE_FIELDS``, (n,) float32 each.

    The denominator of a D+ row is the number of D+ rows (response tokens at level token), that of a D- row likewise.
    """
    tokens = torch.tensor([row.response_length for row in rows])
    desirable = torch.tensor([row.desirable for row in rows])
    share = tokens if settings.level == "token" else torch.ones_like(tokens)
    count = torch.where(desirable, share[desirable].sum(), share[~desirable].sum())
    nothing = torch.zeros(len(rows))
    values = {
        **dict(zip(ROW_FIELDS, (nothing, nothing, count, nothing), strict=True)),
        **dict(
            zip(
                PREFERENCE_FIELDS,
                (torch.where(desirable, 1.0, -1.0), tokens, torch.full_like(nothing, lam)),
                strict=True,
            )
        ),
    }
    return {name: value.float() for name, value in values.items()}


def new_keys(count: int) -> list[str]:
    """Keys that no row of verl has."""
    run = uuid.uuid4().hex
    return [f"preference{run}_{i}_0" for i in range(count)]


def _tokens(rows: Sequence[TokenRow]) -> int:
    return sum(len(row.ids) for row in rows)
