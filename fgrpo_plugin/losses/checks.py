"""What every loss asks of its arguments, and the precision in which it computes."""

import torch


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require_shape(argument: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{argument} has shape {tuple(tensor.shape)}, which must be {shape}")


def require_labels(desirable: torch.Tensor, reward: torch.Tensor) -> None:
    require_shape("desirable", desirable, (len(reward),))
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable must be a bool tensor, got {desirable.dtype}; pass (labels > 0)")


def require_finite(argument: str, tensor: torch.Tensor) -> None:
    if bool(torch.isfinite(tensor.detach().sum())):  # one pass without a copy; finite numbers rarely overflow it
        return
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(dim=-1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{argument} is not finite in {len(bad)} rows, the first of them {bad[:8]}; find what made it so"
        )
