"""One gloo process group for the workers."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from fgrpo_plugin.host.shims import known_source
from fgrpo_plugin.pinned import VERL

_KNOWN = {"761a94d1a2e058d31a0ac231c89a142abf5daf822e333bac75e84cafcf7507ac"}  # the pinned verl's


def register(module: ModuleType) -> None:
    """Let `module`, verl.utils.distributed, start plain gloo.

    verl builds "cpu:gloo,<device>:<backend>", which on the device `cpu` names `cpu` twice, and torch refuses that.
    """
    known_source(
        module.initialize_global_process_group_ray,
        hashes=_KNOWN,
        what="verl.utils.distributed.initialize_global_process_group_ray",
        remedy=f"install verl=={VERL} to train on a CPU",
    )
    wrapt.wrap_function_wrapper(module, "initialize_global_process_group_ray", _with_gloo)


def _with_gloo(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def call(timeout_second: float | None = None, backend: str | None = None) -> Any:
        return wrapped(timeout_second=timeout_second, backend=backend or "gloo")

    return call(*args, **kwargs)
