"""Floating-point operations of a forward pass and of an update.

A token costs 2 operations for each matrix parameter that it meets, and causal attention 2 s^2 per query channel and
layer for a row of s tokens (half of 4 s^2). Backward costs twice the forward: 6 N D and its attention term (Kaplan et
al., arXiv 2001.08361, section 2.1; Narayanan et al., arXiv 2104.04473, appendix).
"""

from fgrpo_plugin.model_shape import ModelShape


def attention_flops(model: ModelShape, row: float, *, causal: bool = True) -> float:
    """Scores and their product with the values, all layers, for one token of a row of ``row`` tokens."""
    return (2 if causal else 4) * row * model.query * model.layers


def layer_flops(model: ModelShape, row: float, *, causal: bool = True) -> float:
    """Forward FLOPs of a token in all layers, without the head."""
    return 2 * model.active_matrices + attention_flops(model, row, causal=causal)


def forward_flops(model: ModelShape, row: float, *, causal: bool = True) -> float:
    """Forward FLOPs of a token in a row of ``row`` tokens, head included."""
    return layer_flops(model, row, causal=causal) + 2 * model.embedding


def update_flops(
    model: ModelShape, row: float, *, recompute: str = "none", lora_rank: int = 0, causal: bool = True
) -> float:
    """FLOPs of a token in an update: forward, backward and what is recomputed.

    Args:
        model: the shape.
        row: tokens of its row.
        recompute: ``full`` repeats the layers' forward pass (not the head's), ``selective`` the attention scores.
        lora_rank: above 0, base weights get no gradient: backward through them costs what forward does.
        causal: count half of the attention scores; False for the literature's full count.
    """
    forward = forward_flops(model, row, causal=causal)
    attention = attention_flops(model, row, causal=causal)
    again = {"none": 0.0, "selective": attention, "full": layer_flops(model, row, causal=causal)}[recompute]
    if not lora_rank:
        return 3 * forward + again
    return 2 * (forward - attention) + 3 * attention + again + 6 * model.lora(lora_rank)
