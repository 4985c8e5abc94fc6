"""How hard a loss pulls each response."""

import torch


def row_slopes(loss: torch.Tensor, implicit_reward: torch.Tensor) -> torch.Tensor:
    """How hard each response is pulled: |dL/dr_i|, at level token summed over tokens.

    Times beta + gamma that is the slope to the response's log-prob (the sum over its tokens; at level sequence_mean
    their mean; at level token the sum of the tokens' slopes). Only the loss is differentiated, not the model.

    Args:
        loss: scalar that was computed from `implicit_reward`.
        implicit_reward: r before `clip_implicit_reward`, so that what is clipped has slope 0; (n,) or (n, T), requires
            gradient.

    Returns:
        (n,), no gradient; the graph of the loss is kept.
    """
    (slope,) = torch.autograd.grad(loss, implicit_reward, retain_graph=True)
    slope = slope.abs()
    return slope if slope.dim() == 1 else slope.sum(dim=-1)
