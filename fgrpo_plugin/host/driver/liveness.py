"""Ends a run within seconds of the death of one of its parts.

The driver mostly waits for rows that a dead part will never make, and Ray tells a death to those alone who wait for a
call of the dead actor. So one call to each is kept waiting here.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

EVERY = 5.0
"""Seconds between two calls to a part that answers."""
GRACE = 20.0
"""Seconds for the main thread to end once it has been told; then the process is ended."""
_SIGNAL = signal.SIGUSR2


class PartDied(RuntimeError):
    """A process of the run has died; the message says which, and why as far as Ray knows."""


@contextlib.contextmanager
def watching(parts: Mapping[str, Any], every: float = EVERY) -> Iterator[None]:
    """Raise `PartDied` in the main thread, whatever it waits for, as soon as a part has died.

    Args:
        parts: name for the message -> handle of a Ray actor. One that is only busy is left in peace.
        every: seconds between two calls to a part.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal reaches it; Ray's own errors stay
        yield
        return
    died: list[str] = []
    done = threading.Event()

    def end(signum: int, frame: Any) -> None:
        if died and not done.is_set():
            raise KeyboardInterrupt  # the one exception that ray.get passes on from a signal

    previous = signal.signal(_SIGNAL, end)
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        message = _first_death(parts, every, done)
        if message is None:
            return
        died.append(message)
        print(f"fgrpo-plugin: {message}", file=sys.stderr, flush=True)
        signal.pthread_kill(main, _SIGNAL)
        if not done.wait(GRACE):
            os._exit(1)

    thread = threading.Thread(target=watch, name="fgrpo-liveness", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if died:
            raise PartDied(died[0]) from None
        raise
    finally:
        done.set()
        signal.signal(_SIGNAL, previous)


def _first_death(parts: Mapping[str, Any], every: float, done: threading.Event) -> str | None:
    """Wait for a death; None where the run ended before one."""
    import ray

    waiting = {actor.__ray_ready__.remote(): name for name, actor in parts.items()}
    while waiting and not done.is_set():
        answered, _ = ray.wait(list(waiting), timeout=every / 2)
        for call in answered:
            name = waiting.pop(call)
            try:
                ray.get(call)
            except ray.exceptions.RayActorError as error:
                if done.is_set():  # a part that the run's end has ended
                    return None
                reason = " ".join(str(error).split())
                return f"{name} has died, and the run ends here ({reason})."
            except Exception:  # whatever else Ray says of the call, it is no death
                pass
            waiting[parts[name].__ray_ready__.remote()] = name
        if answered:
            done.wait(every)
    return None
