"""verl's replay buffers look for finished rollouts often enough for small models."""

from types import ModuleType
from typing import Any

import wrapt
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

# verl looks every 2 s, longer than a whole step of a small model.
_POLL_SECONDS = 0.05


class FastPollReplayBuffer(ReplayBuffer):
    """Named by configurations of earlier versions; verl gives a custom sampler no groups to filter."""


def register(module: ModuleType) -> None:
    """Shorten the poll interval of `module`'s buffers, ``verl.trainer.ppo.v1.replay_buffer``; verl has no setting."""

    def poll_often(wrapped: Any, buffer: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **{"poll_interval": _POLL_SECONDS} | kwargs)

    wrapt.wrap_function_wrapper(module, "ReplayBuffer.__init__", poll_often)
