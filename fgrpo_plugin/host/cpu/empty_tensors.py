"""What verl sends as bytes (``VERL_DATAPROTO_SERIALIZATION_METHOD=numpy``) may hold a tensor without elements."""

import math
from types import ModuleType
from typing import Any

import torch
import wrapt

READS = "deserialize_single_tensor"


def register(module: ModuleType) -> None:
    """Let `module`, ``verl.protocol``, read one, as an empty response has it; torch makes none of no bytes.

    A verl that reads them otherwise is left as it is.
    """
    if hasattr(module, READS):
        wrapt.wrap_function_wrapper(module, READS, _none_of_no_bytes)


def _none_of_no_bytes(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    (sent,) = args
    dtype, shape, _ = sent
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return wrapped(sent)
