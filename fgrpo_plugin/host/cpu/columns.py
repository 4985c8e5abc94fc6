"""Workers are handed every column of tensors, and of the others images and the like alone."""

from types import ModuleType
from typing import Any

import wrapt

READ = "multi_modal_inputs"
"""The one column that verl's engines read of those that are no tensors."""
FETCHES = "async_kv_batch_meta2batch_meta"
"""By it verl's driver, where it deals a batch to ranks, and its workers ask the queue what a batch holds."""


def register(module: ModuleType) -> None:
    """Let `module`, ``verl.utils.transferqueue_utils``, name no other column of a batch.

    Prompts as text, right answers and whatever else a row brings would be unpacked row by row, for nothing. A verl that
    fetches otherwise is left as it is.
    """
    if hasattr(module, FETCHES):
        wrapt.wrap_function_wrapper(module, FETCHES, _without_the_rest)


async def _without_the_rest(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = await wrapped(*args, **kwargs)
    schema = batch.field_schema
    return batch.select_fields([name for name in schema if name == READ or not schema[name]["is_non_tensor"]])
