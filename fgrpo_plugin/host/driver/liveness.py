"""Ends a run within seconds of the death of one of its parts, or of a reward that cannot be used.

The driver mostly waits for rows that a dead part will never make, and Ray tells a death to those alone who wait for a
call of the dead actor. So one call to each is kept waiting here.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.contract import BAD_REWARD
from fgrpo_plugin.host.driver.parts import engine_failure, has_engine

EVERY = 5.0
"""Seconds between two calls to a part that answers."""
GRACE = 20.0
"""Seconds for the main thread to end once it has been told; then the process is ended."""
LOOK = 3.0
"""Seconds in which a dead part is looked for when the run ends with another error."""
_SIGNAL = signal.SIGUSR2


class PartDied(RuntimeError):
    """A process of the run has died, or has met what it cannot go on from; the message says which, and why."""


@contextlib.contextmanager
def watching(parts: Mapping[str, Any], every: float = EVERY) -> Iterator[None]:
    """Raise `PartDied` in the main thread, whatever it waits for, as soon as a part has died.

    Args:
        parts: name for the message -> handle of a Ray actor. One that is only busy is left in peace.
        every: seconds between two calls to a part.
    """
    import ray

    if threading.current_thread() is not threading.main_thread():  # no signal reaches it; Ray's own errors stay
        yield
        return
    died: list[str] = []
    done, ending = threading.Event(), threading.Event()
    telling = threading.Lock()  # once the run has ended no signal is sent: what it then meets may end the process

    def end(signum: int, frame: Any) -> None:
        if died and not ending.is_set():
            raise KeyboardInterrupt  # the one exception that ray.get passes on from a signal

    previous = signal.signal(_SIGNAL, end)
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        try:
            message = _first_death(parts, every, done)
        except Exception as error:
            if ray.is_initialized() and not done.is_set():  # else Ray is being shut down
                _say(
                    f"the watch over the run's parts has ended ({error!r}); a part that dies is noticed late, or never."
                )
            return
        if message is None:
            return
        with telling:
            if done.is_set():
                return
            died.append(message)
            _say(message)
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
    except Exception as error:
        # A death shows itself as an error elsewhere too, such as prompts whose generation failed. The watch may see it
        # now as well, and its signal must not cut this short.
        ending.set()
        message = died[0] if died else str(error) if isinstance(error, PartDied) else None
        with contextlib.suppress(Exception):  # Ray itself may be gone; the error that is here says more
            message = message or _first_death(parts, 0.0, done, patience=LOOK)
        if message is None:
            raise
        if not died:
            _say(message)
        raise PartDied(message) from error
    finally:
        ending.set()
        with telling:
            done.set()
        signal.signal(_SIGNAL, previous)


def require_living(parts: Mapping[str, Any]) -> None:
    """Raise `PartDied` if a part has died; what is only busy is waited for `LOOK` seconds.

    The watch looks every few seconds, and in between a step that lacks what a dead part would have made could be
    trained on, logged and saved.

    Args:
        parts: as of `watching`.
    """
    message = _first_death(parts, 0.0, threading.Event(), patience=LOOK, rewards=False)
    if message is not None:
        raise PartDied(message)


def _say(message: str) -> None:
    say(f"fgrpo-plugin: {message}", error=True)


def _first_death(
    parts: Mapping[str, Any],
    every: float,
    done: threading.Event,
    patience: float = float("inf"),
    rewards: bool = True,
) -> str | None:
    """Wait for a death, or a reward that cannot be used; None where the run ended, or patience did, before one."""
    import ray
    from ray import exceptions

    never = (
        exceptions.RayActorError,
        exceptions.ActorPlacementGroupRemoved,
        exceptions.ActorUnschedulableError,
        exceptions.RuntimeEnvSetupError,
    )
    began = time.monotonic()
    waiting = {_ask(name, actor): name for name, actor in parts.items()}
    told = [method.remote() for actor in parts.values() if rewards and (method := getattr(actor, BAD_REWARD, None))]
    while waiting and not done.is_set() and time.monotonic() - began < patience:
        # All that have answered: by itself Ray names one of them, any one, and parts that live can hide a dead one.
        asked = [*waiting, *told]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=min(1.0, every or 1.0))
        for call in answered:
            if call in told:
                told.remove(call)
                with contextlib.suppress(exceptions.RayError):  # dead, which the other call tells
                    return str(ray.get(call))
                continue
            name = waiting.pop(call)
            again = patience == float("inf")
            try:
                answer = ray.get(call)
                if isinstance(answer, str) and not done.is_set():
                    return f"the engine of {name} has died, and the run ends here ({' '.join(answer.split())})."
            except exceptions.ActorUnavailableError:  # its connection broke, or Ray starts it again: it may yet answer
                again = True
            except never as error:
                if done.is_set():  # a part that the run's end has ended
                    return None
                return f"{name} has died, and the run ends here ({' '.join(str(error).split())})."
            except Exception:  # whatever else Ray says of the call, it is no death
                pass
            if again:
                waiting[_ask(name, parts[name])] = name
        if answered and waiting:
            done.wait(every or 0.1)
    return None


def _ask(name: str, part: Any) -> Any:
    return part.__ray_call__.remote(engine_failure) if has_engine(name) else part.__ray_ready__.remote()
