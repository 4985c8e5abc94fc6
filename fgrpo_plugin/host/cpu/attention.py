"""Attention without flash-attn: each row by itself, packed or padded, also under Ulysses sequence parallelism.

verl inserts Ulysses' all-to-alls around flash attention alone. The attention that is registered here with transformers,
`override_config.attn_implementation=cpu_packed`, goes through the same function of verl, and puts scaled
dot-product attention of one row after another where the flash kernel would be. For packed rows transformers' `sdpa`
builds a mask of the whole line instead, and computes the products of every row with every other one.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "cpu_packed"


def register(module: Any) -> None:
    """Offer `NAME` to transformers; `module` is verl.models.transformers.monkey_patch."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    def attention(
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        position_ids: torch.Tensor | None = None,
        sliding_window: int | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Query (batch, heads, tokens, dim); keys and values with their own number of heads."""
        if softcap is not None or s_aux is not None:
            raise ValueError(
                f"attn_implementation={NAME} knows neither capped logits nor attention sinks, which this model has; "
                "set actor_rollout_ref.model.override_config.attn_implementation=eager."
            )
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        output = module._ulysses_flash_attention_forward(
            query,
            key,
            value,
            attention_mask,
            query.shape[1],
            position_ids=position_ids,
            softmax_scale=scaling,
            sliding_window=sliding_window,
            dropout=dropout,
        )
        return output, None

    # verl calls the kernel by this name of its own module; the kernel itself cannot run on a CPU.
    module._flash_attention_forward = row_attention
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


def row_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    query_length: int,
    *,
    position_ids: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention inside each row.

    Args:
        query: (batch, tokens, heads, dim); batch is 1 for packed rows.
        key: (batch, tokens, key heads, dim); key heads divide heads.
        value: as key.
        attention_mask: (batch, tokens), true for the tokens of a padded row, which come first; None without padding.
        query_length: tokens; not read.
        position_ids: (1, tokens) of packed rows, from 0 in each; not read for a batch of rows.
        softmax_scale: of the logits; None for 1/sqrt(dim).
        sliding_window: how many tokens a token sees, itself among them; None for all before it.
        dropout: probability with which a weight is dropped.

    Returns:
        (batch, tokens, heads, dim). Outputs for padding mean nothing: no token of a row sees them.

    Raises:
        ValueError: for rows that are padded at their beginning, and for keys from a cache.
    """
    if query.shape[1] != key.shape[1] or (attention_mask is not None and not attention_mask[:, 0].all()):
        raise ValueError(
            f"attn_implementation={NAME} takes whole rows, packed or padded at their end; it cannot generate."
        )
    states = [part.transpose(1, 2) for part in (query, key, value)]
    lengths = [query.shape[1]]
    if query.shape[0] == 1 and attention_mask is None and position_ids is not None:
        bounds = (*(position_ids[0] == 0).nonzero()[:, 0].tolist(), query.shape[1])
        lengths = [end - start for start, end in pairwise(bounds)]
    compute = partial(scaled_dot_product_attention, dropout_p=dropout, scale=softmax_scale, enable_gqa=True)
    outputs = []
    for row_query, row_key, row_value in zip(*(part.split(lengths, dim=2) for part in states), strict=True):
        window = _window(row_query.shape[2], sliding_window)
        outputs.append(compute(row_query, row_key, row_value, attn_mask=window, is_causal=window is None))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _window(tokens: int, size: int | None) -> torch.Tensor | None:
    """(tokens, tokens) mask of a sliding window; None where causality is all there is."""
    if size is None or tokens <= size:
        return None
    return torch.ones(tokens, tokens, dtype=torch.bool).tril().triu(1 - size)
