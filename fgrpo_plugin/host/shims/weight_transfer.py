"""Ends a transfer of weights whose receiver has failed. Patch: 0005-failed-weight-receiver.patch in patches/.

verl's sender waits for its receiver, a vLLM worker, without a limit: an error there, or its death, was never read, and
the run waited for ever. Here the sender looks at the receiver's call while it waits; a patched verl hands it that
call. On a verl of another shape the worker says so and the run goes on without this; `fgrpo doctor` fails there.
"""

import inspect
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

import wrapt

from fgrpo_plugin.host.shims import require_replaced

LOOK_EVERY = 1.0
"""Seconds between two looks at the receiver's call."""
GRACE = 30.0
"""Seconds for an answer that is still under way when the receiver's call has returned."""

_PACKAGE = "verl.workers.rollout.vllm_rollout"
_receiver: ContextVar[Any] = ContextVar("receiver", default=None)
"""The Ray reference of the call that this task has started last; None on ranks that serve no engine."""


class WatchedSocket(wrapt.ObjectProxy):
    """A ZeroMQ socket that raises what its peer's call has raised, in place of waiting for it.

    Args:
        socket: the sender's.
        receiver: the peer's call.

    Raises:
        RuntimeError: in `recv` and `send_pyobj`, if the call has returned and `GRACE` seconds bring no answer.
        Exception: there as well, whatever the call has raised, or Ray's error if its process has died.
    """

    def __init__(self, socket: Any, receiver: Future):
        super().__init__(socket)
        self._self_receiver = receiver

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
        returned = False
        while not self.__wrapped__.poll(1000 * (GRACE if returned else LOOK_EVERY), event):
            if returned:
                raise RuntimeError("the rollout engine's call returned before every weight had been sent to it.")
            if self._self_receiver.done():
                self._self_receiver.result()  # raises what the receiver raised, or that it died
                returned = True


def apply(rollout: Any) -> bool:
    """Adapt ``verl.workers.rollout.vllm_rollout.vllm_rollout``; False where the sender takes its receiver's call.

    Raises:
        RuntimeError: if verl's transfer is none that this was written for.
    """
    sender, adapter = rollout.BucketedWeightSender, rollout.ServerAdapter
    if "receiver" in inspect.signature(sender).parameters:
        return False
    for name, used in {
        "bucketed_weight_transfer:BucketedWeightSender": sender,
        "vllm_rollout:ServerAdapter._execute_method": adapter._execute_method,
        "vllm_rollout:ServerAdapter.update_weights": adapter.update_weights,
    }.items():
        require_replaced(used, f"{_PACKAGE}.{name}", "0005-failed-weight-receiver.patch")
    wrapt.wrap_function_wrapper(adapter, "_execute_method", _noting_receiver)
    wrapt.wrap_function_wrapper(sender, "_init_socket", _watching_socket)
    return True


async def _noting_receiver(wrapped: Any, adapter: Any, args: Any, kwargs: Any) -> Any:
    result = await wrapped(*args, **kwargs)
    if kwargs.get("non_block"):  # verl's transfers alone do not wait for their call
        _receiver.set(result)
    return result


def _watching_socket(wrapped: Any, sender: Any, args: Any, kwargs: Any) -> None:
    wrapped(*args, **kwargs)
    receiver = _receiver.get()
    if receiver is not None:
        sender.socket = WatchedSocket(sender.socket, receiver.future())
