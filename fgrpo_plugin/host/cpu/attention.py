"""Attention over packed rows without flash-attn, so that Ulysses sequence parallelism runs on a CPU.

verl inserts Ulysses' all-to-alls around flash attention alone. The attention that is registered here with transformers,
`override_config.attn_implementation=cpu_packed`, goes through the same function of the host, and puts scaled
dot-product attention with a block-diagonal causal mask where the flash kernel would be. Packing without Ulysses needs
none of this: transformers builds that mask for `sdpa`.
"""

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
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Query (1, heads, tokens, dim); keys and values with their own number of heads."""
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        output = module._ulysses_flash_attention_forward(
            query, key, value, attention_mask, query.shape[1], position_ids=position_ids, softmax_scale=scaling
        )
        return output, None

    # The host calls the kernel by this name of its own module; the kernel itself cannot run on a CPU.
    module._flash_attention_forward = packed_attention
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    query_length: int,
    *,
    position_ids: torch.Tensor,
    softmax_scale: float | None = None,
) -> torch.Tensor:
    """Causal attention inside each packed row.

    Args:
        query: (1, tokens, heads, dim).
        key: (1, tokens, key heads, dim); key heads divide heads.
        value: as key.
        attention_mask: None; padded rows are refused.
        query_length: tokens; not read.
        position_ids: (1, tokens), from 0 in each row.
        softmax_scale: of the logits; None for 1/sqrt(dim).

    Returns:
        (1, tokens, heads, dim).

    Raises:
        ValueError: for padded rows.
    """
    if attention_mask is not None or query.shape[0] != 1:
        raise ValueError(f"attn_implementation={NAME} takes packed rows; set model.use_remove_padding=true.")
    row = (position_ids[0] == 0).cumsum(0)
    mask = (row.unsqueeze(1) == row.unsqueeze(0)).tril()
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=True)
    return output.transpose(1, 2)
