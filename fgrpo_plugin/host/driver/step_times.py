"""Says when a step takes much longer than those before it; a step is never ended for it."""

import statistics
import threading
import time

from fgrpo_plugin.foreign_text import say

SLOW, LEAST_SECONDS, LEAST_STEPS = 5.0, 60.0, 3
"""A step is slow beyond so many times the median of those before it, and beyond so many seconds, once there are so many
steps. The median and no fixed time: a step of a large model may take ten minutes."""


class SlowStepNews:
    """Mixed in front of a verl trainer. A step lasts from its begin to validation's, or to the next one's."""

    global_steps: int
    _began: float | None = None
    _timer: threading.Timer | None = None

    def on_step_begin(self) -> None:
        self.end_step_time()
        self._began = time.monotonic()
        seconds = self._seconds()
        if (limit := slow_after(seconds)) is not None:
            self._timer = threading.Timer(limit, say_slow, [self.global_steps, limit, statistics.median(seconds)])
            self._timer.daemon = True
            self._timer.start()
        super().on_step_begin()  # type: ignore[misc]

    def on_validate_begin(self) -> None:
        self.end_step_time()
        super().on_validate_begin()  # type: ignore[misc]

    def end_step_time(self) -> None:
        """Note how long the step under way has taken; nothing where none is."""
        if self._timer is not None:
            self._timer.cancel()
        if self._began is not None:
            self._seconds().append(time.monotonic() - self._began)
        self._began = self._timer = None

    def _seconds(self) -> list[float]:
        """How long each step so far has taken."""
        found: list[float] = self.__dict__.setdefault("_step_seconds", [])
        return found


def slow_after(seconds: list[float]) -> float | None:
    """Return the seconds after which a step is slow; None while there are too few to compare with.

    Args:
        seconds: of each step before it.
    """
    if len(seconds) < LEAST_STEPS:
        return None
    return max(SLOW * statistics.median(seconds), LEAST_SECONDS)


def say_slow(step: int, seconds: float, median: float) -> None:
    """Say that a step is slow."""
    say(
        f"fgrpo-plugin: WARNING: step {step} has taken {seconds:.0f} s so far, where the median is {median:.0f} s; it "
        "goes on, and would end if a part of the run had died."
    )
