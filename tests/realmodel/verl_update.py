"""Plain rows as verl's queue holds them when the actor is updated, with what our driver attaches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver.joining import as_queue_rows, joined_order, preference_numbers
from fgrpo_plugin.host.driver.rows import minibatch_of_row, on_policy_fields, row_numbers
from fgrpo_plugin.preference.tokens import TokenRow
from tests.support.worker import in_order, nested


def queued(
    rows: Sequence[dict[str, Any]], preferences: Sequence[dict[str, Any]], settings: FDivergenceConfig, lam: float
) -> TensorDict:
    """Rows of `tests.realmodel.independent` as one mini-batch for one rank; log pi_ref is left to the worker.

    Without preference rows it is a batch of f-GRPO.
    """
    on = _on_policy(rows, settings)
    on.update(on_policy_fields(len(rows), lam))
    if not preferences:
        return on
    tokens = [TokenRow(row["prompt"], row["response"], row["desirable"], None, "") for row in preferences]
    nothing = [torch.zeros(len(row["response"])) for row in preferences]
    fields = as_queue_rows(tokens, nothing) | preference_numbers(tokens, settings, lam)
    off = TensorDict(fields, batch_size=len(tokens))
    return in_order(joined_order(len(rows), 1, 1, len(tokens)), on=on, off=off)


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
        "ref_log_prob": nested(torch.zeros(len(response)) for response in responses),
        "advantages": nested(torch.full((len(response),), 9.0) for response in responses),  # must not be read
    }
    return TensorDict(fields | numbers, batch_size=len(rows))
