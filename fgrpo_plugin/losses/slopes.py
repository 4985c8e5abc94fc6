"""How hard a loss pulls each response."""

from typing import Any

import torch


def row_slopes(loss: torch.Tensor, implicit_reward: torch.Tensor) -> torch.Tensor:
    """Measure how hard each response is pulled: |dL/dr_i|, at level token summed over tokens.

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


def differentiated_once(
    loss: torch.Tensor, leaf: torch.Tensor, implicit_reward: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiate a loss once, both for its slopes and for the backward pass to come.

    Args:
        loss: scalar that was computed from `leaf`; its graph is freed.
        leaf: a copy of `implicit_reward` without its graph.
        implicit_reward: r, (n,) or (n, T).

    Returns:
        The loss as a function of `implicit_reward`, which can be differentiated once, and dL/dr in r's shape.
    """
    (slope,) = torch.autograd.grad(loss, leaf)
    return _GivenSlope.apply(implicit_reward, loss.detach(), slope), slope


class _GivenSlope(torch.autograd.Function):
    """A scalar whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, implicit_reward: torch.Tensor, loss: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slope)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None
