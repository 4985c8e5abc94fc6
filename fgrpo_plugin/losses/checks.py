"""What every loss asks of its arguments, and the precision in which it computes."""

import math
from collections.abc import Mapping

import torch

LOG_PROBS = "log_prob, ref_log_prob or old_log_prob"
"""What made an implicit reward that is not finite."""


class NotFinite(ValueError):
    """An argument of a loss is not finite; the message names it and the rows."""


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require_shape(argument: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{argument} has shape {tuple(tensor.shape)}, which must be {shape}")


def require_labels(desirable: torch.Tensor, reward: torch.Tensor) -> None:
    require_shape("desirable", desirable, (len(reward),))
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable must be a bool tensor, got {desirable.dtype}; pass (labels > 0)")


def finite_extremes(
    argument: str, reward: torch.Tensor, constants: Mapping[str, torch.Tensor] | None = None
) -> tuple[float, float]:
    """(smallest, largest) of the reward, and the check that it and the constants are finite: one wait for the device.

    Args:
        argument: what to call the reward where it is not finite.
        reward: (n,) or (n, T), nothing in it masked.
        constants: name -> (n,).

    Raises:
        NotFinite: something is not finite (rows named).
    """
    if not reward.numel():
        return 0.0, 0.0
    constants = constants or {}
    # A sum is finite where its terms are, but for an overflow, and then no row is found.
    sums = [values.detach().sum(dtype=reward.dtype) for values in constants.values()]
    smallest, largest, *rest = torch.stack([*reward.detach().aminmax(), *sums]).tolist()
    if not all(map(math.isfinite, (smallest, largest, *rest))):
        for name, values in {argument: reward, **constants}.items():
            require_finite(name, values)
    return smallest, largest


def require_finite(argument: str, tensor: torch.Tensor) -> None:
    if bool(torch.isfinite(tensor.detach().sum())):  # one pass without a copy; finite numbers rarely overflow it
        return
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(dim=-1).nonzero().flatten().tolist()
    if bad:
        raise NotFinite(
            f"{argument} is not finite in {len(bad)} rows, the first of them {bad[:8]}; find what made it so"
        )
