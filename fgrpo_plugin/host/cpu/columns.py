"""The engines are handed the columns that they read: of those that are no tensors, images and the like alone."""

from types import ModuleType
from typing import Any

import wrapt

READ = "multi_modal_inputs"
"""The one column that verl's engines read of those that are no tensors."""
FETCHES = "kv_batch_meta2batch_meta"


def register(module: ModuleType) -> None:
    """Let `module`, ``verl.utils.transferqueue_utils``, fetch no other column for a worker's method.

    Prompts as text, the right answers and whatever else a row brings cost more to unpack than a tiny model to train. A
    verl that fetches otherwise is left as it is.
    """
    if hasattr(module, FETCHES):
        wrapt.wrap_function_wrapper(module, FETCHES, _without_the_rest)


def _without_the_rest(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = wrapped(*args, **kwargs)
    schema = batch.field_schema
    return batch.select_fields([name for name in schema if name == READ or not schema[name]["is_non_tensor"]])
