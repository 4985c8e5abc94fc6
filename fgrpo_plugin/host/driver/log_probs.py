"""Log-probs of preference rows by verl's own stages."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fgrpo_plugin.host.driver.joining import as_queue_rows, new_keys
from fgrpo_plugin.preference.tokens import TokenRow


def stage_log_probs(
    rows: Sequence[TokenRow], compute: Callable[[Any], Any], field: str, multiple: int
) -> list[torch.Tensor]:
    """Return what a stage of verl writes for these rows: (T,) float32 nats for each row's response tokens.

    Args:
        rows: preference rows.
        compute: the stage, which takes a batch of verl's queue.
        field: where it writes: ``ref_log_prob`` or ``log_probs``.
        multiple: rows that it takes are a multiple of this, see `log_prob_multiple`.
    """
    import transfer_queue as tq
    from tensordict import TensorDict
    from verl.workers.utils.padding import response_from_nested

    # verl takes whole micro-batches on every rank: the last rows are repeated.
    rows = list(rows)
    padded = rows + [rows[-1]] * (-len(rows) % multiple)
    keys = new_keys(len(padded))
    tags = [{"seq_len": len(row.ids)} for row in padded]
    fields = TensorDict(as_queue_rows(padded), batch_size=len(padded))
    batch = tq.kv_batch_put(keys=keys, partition_id="preference", fields=fields, tags=tags)
    try:
        compute(batch)
        data = tq.kv_batch_get(keys=keys, partition_id="preference", select_fields=[field, "response_mask"])
    finally:
        tq.kv_clear(keys=keys, partition_id="preference")
    values = data[field]
    if field == "log_probs":  # over the whole sequence, as the engine gives them
        values = response_from_nested(values, data["response_mask"])
    return [row.float() for row in values.unbind()][: len(rows)]


def log_prob_multiple(config: Any) -> int:
    """Rows that verl's log-prob passes take are a multiple of this: whole micro-batches on every rank."""
    ref, rollout, trainer = config.actor_rollout_ref.ref, config.actor_rollout_ref.rollout, config.trainer
    sizes = [
        section.get("log_prob_micro_batch_size_per_gpu") or 1
        for section in (ref, rollout)
        if not section.get("log_prob_use_dynamic_bsz", False)
    ]
    return trainer.nnodes * trainer.n_gpus_per_node * math.lcm(*sizes)
