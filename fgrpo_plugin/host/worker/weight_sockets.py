"""The socket by which an actor sends its weights to the rollout engine, of each run its own.

verl names it by Ray's job id, which every Ray that a run starts for itself counts from 1: of two runs on one machine
the second removes the first one's socket, and an engine may be served by the other run's actor.
"""

import hashlib
import os
from functools import wraps
from types import ModuleType
from typing import Any

from fgrpo_plugin.processes import MARKER


def of_this_run(handle: str) -> str:
    """Return ZeroMQ's address with the run's marker in its name.

    The same in all processes that the run's command has started. A Ray that was there before has started them without
    one, and counts the jobs of all its runs.
    """
    run = os.environ.get(MARKER)
    if not run or not handle.startswith("ipc://"):
        return handle
    return f"{handle.removesuffix('.sock')}-{hashlib.sha256(run.encode()).hexdigest()[:12]}.sock"


def separate_runs(transfer: ModuleType) -> None:
    """Make both ends of ``verl.workers.rollout.vllm_rollout.bucketed_weight_transfer`` use `of_this_run`."""
    for end in (transfer.BucketedWeightSender, transfer.BucketedWeightReceiver):
        end.__init__ = _at_own_address(end.__init__)


def _at_own_address(stock: Any) -> Any:
    @wraps(stock)
    def __init__(self: Any, zmq_handle: str, *args: Any, **kwargs: Any) -> None:
        stock(self, of_this_run(zmq_handle), *args, **kwargs)

    return __init__
