"""Ends a transfer of weights whose receiver has failed.

verl's sender waits for its receiver, a vLLM worker, without a limit: an error there, or its death, was never read, and
the run waited for ever. Here the sender looks at the receiver's call while it waits.
"""

import time
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import wrapt

RECEIVE = "update_weights_from_ipc"
LOOK_EVERY = 1.0
"""Seconds between two looks at the receiver's call."""
GRACE = 30.0
"""Seconds for an answer that is still under way when the receiver's call has returned."""

_receiver: ContextVar[Any] = ContextVar("receiver", default=None)
"""The Ray reference of the receiver's call that belongs to this transfer; None on ranks that serve no engine."""


class WatchedSocket(wrapt.ObjectProxy):
    """A ZeroMQ socket that raises what its peer's call has raised, in place of waiting for it."""

    def __init__(self, socket: Any, receiver: Any):
        super().__init__(socket)
        self._self_receiver = receiver
        self._self_returned_at: float | None = None

    def recv(self, *args: Any, **kwargs: Any) -> Any:
        import zmq

        self._wait(zmq.POLLIN)
        return self.__wrapped__.recv(*args, **kwargs)

    def send_pyobj(self, *args: Any, **kwargs: Any) -> Any:
        import zmq

        self._wait(zmq.POLLOUT)  # without a peer, a send waits too
        return self.__wrapped__.send_pyobj(*args, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> None:
        # What nobody will fetch must not keep the process.
        self.__wrapped__.close(linger=0)

    def _wait(self, event: int) -> None:
        import ray

        while not self.__wrapped__.poll(LOOK_EVERY * 1000, event):
            if not ray.wait([self._self_receiver], timeout=0)[0]:
                continue
            ray.get(self._self_receiver)  # raises what the receiver raised, or that it died
            self._self_returned_at = self._self_returned_at or time.monotonic()
            if time.monotonic() - self._self_returned_at > GRACE:
                raise RuntimeError(f"the rollout engine's {RECEIVE} returned before every weight had been sent to it.")


def watch_senders(module: ModuleType) -> None:
    """Adapt `module`, ``verl.workers.rollout.vllm_rollout.bucketed_weight_transfer``."""

    def init_socket(wrapped: Any, sender: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        receiver = _receiver.get()
        if receiver is not None:
            sender.socket = WatchedSocket(sender.socket, receiver)

    wrapt.wrap_function_wrapper(module, "BucketedWeightSender._init_socket", init_socket)


def note_receivers(module: ModuleType) -> None:
    """Adapt `module`, ``verl.workers.rollout.vllm_rollout.vllm_rollout``."""

    async def execute_method(wrapped: Any, adapter: Any, args: Any, kwargs: Any) -> Any:
        result = await wrapped(*args, **kwargs)
        if (args[0] if args else kwargs.get("method")) == RECEIVE and kwargs.get("non_block"):
            _receiver.set(result)
        return result

    wrapt.wrap_function_wrapper(module, "ServerAdapter._execute_method", execute_method)
