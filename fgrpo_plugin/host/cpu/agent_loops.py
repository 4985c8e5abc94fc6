"""verl's agent loops, one for each response, are made without a copy of what they are given."""

from collections.abc import Mapping
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import hydra


def register(module: ModuleType) -> None:
    """Let `module`, ``verl.experimental.agent_loop.agent_loop``, make them by `made`.

    hydra makes OmegaConf's nodes of every argument first, for each response.
    """
    vars(module)["hydra"] = SimpleNamespace(utils=SimpleNamespace(instantiate=made))  # all that it uses of hydra


def made(config: Any, **arguments: Any) -> Any:
    """What ``hydra.utils.instantiate`` makes of arguments that are objects.

    Args:
        config: of an agent loop in verl's registry; one that has more than a ``_target_`` is hydra's to read.
        **arguments: of its class.
    """
    if isinstance(config, Mapping) and set(config) == {"_target_"} and isinstance(config["_target_"], str):
        return _named(config["_target_"])(**arguments)
    return hydra.utils.instantiate(config=config, **arguments)


@cache
def _named(name: str) -> Any:
    return hydra.utils.get_object(name)
