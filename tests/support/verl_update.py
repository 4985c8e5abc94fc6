"""Plain rows as verl's queue holds them when the actor is updated, with what our driver attaches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver.joining import as_queue_rows, deal, joined_order, preference_numbers
from fgrpo_plugin.host.driver.rows import minibatch_of_row, on_policy_fields, row_numbers
from fgrpo_plugin.preference.tokens import TokenRow
from tests.support.worker import in_order, nested


def queued(
    rows: Sequence[dict[str, Any]],
    preferences: Sequence[dict[str, Any]],
    settings: FDivergenceConfig,
    lam: float,
    ranks: int = 1,
) -> TensorDict:
    """Rows of `tests.support.independent` as one mini-batch; without preference rows it is a batch of f-GRPO.

    Args:
        rows: on-policy; a row without ``ref_log_prob`` has zeros there, which are left to the worker to fill.
        preferences: the same.
        settings: of the loss.
        lam: lambda.
        ranks: data-parallel ranks, each of which has its share of both kinds.
    """
    on = _on_policy(rows, settings)
    on.update(on_policy_fields(len(rows), lam))
    if not preferences:
        return on
    drawn = [
        TokenRow(row["prompt"], row["response"], row["desirable"], None, str(i)) for i, row in enumerate(preferences)
    ]
    dealt = [row for rank in deal(drawn, ranks) for row in rank]
    reference = [_reference(preferences[int(row.source)]) for row in dealt]
    fields = as_queue_rows(dealt, reference) | preference_numbers(dealt, settings, lam)
    off = TensorDict(fields, batch_size=len(dealt))
    return in_order(joined_order(len(rows), 1, ranks, len(dealt) // ranks), on=on, off=off)


def _reference(row: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(row.get("ref_log_prob", [0.0] * len(row["response"])))


def _on_policy(rows: Sequence[dict[str, Any]], settings: FDivergenceConfig) -> TensorDict:
    prompts, responses, masks = ([torch.tensor(row[name]) for row in rows] for name in ("prompt", "response", "mask"))
    whole = [torch.cat(parts) for parts in zip(prompts, responses, strict=True)]
    before = [torch.zeros_like(prompt) for prompt in prompts]
    old = nested(torch.tensor(row["old_log_prob"]) for row in rows)
    numbers, _ = row_numbers(
        rewards=torch.tensor([row["reward"] for row in rows]),
        uids=np.array([row["group"] for row in rows], dtype=object),
        response_mask=nested(masks),
        old_log_prob=old,
        minibatch=minibatch_of_row(len(rows), len(rows), 1),
        padding=torch.zeros(len(rows), dtype=torch.bool),
        settings=settings,
        normalize_by_std=True,
    )
    fields = {
        "prompts": nested(prompts),
        "responses": nested(responses),
        "input_ids": nested(whole),
        "position_ids": nested(torch.arange(len(ids)) for ids in whole),
        "response_mask": nested(masks),
        "loss_mask": nested(torch.cat(parts) for parts in zip(before, masks, strict=True)),
        "old_log_probs": old,
        "ref_log_prob": nested(map(_reference, rows)),
        "advantages": nested(torch.full((len(response),), 9.0) for response in responses),  # must not be read
    }
    return TensorDict(fields | numbers, batch_size=len(rows))
