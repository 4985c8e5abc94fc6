"""Progress of long work: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fgrpo_plugin.foreign_text import printable
from fgrpo_plugin.terminal import Terminal

SILENCE_SECONDS = 25.0
"""After so long without a line, what is under way is said again."""

Follow = Callable[[str], Callable[[int, int], None]]
"""What is under way -> what is called with how much is done, and of how much."""


class Lines:
    """Plain lines with the time since the start, where there is no terminal for a progress bar."""

    def __init__(self, console: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.plain = not console.is_terminal
        self.started = self.last = clock()
        self.under_way = ""

    def say(self, text: str) -> None:
        """One line, flushed; nothing on a terminal."""
        self.under_way, self.last = text, self.clock()
        if self.plain:
            line = f"{duration(self.last - self.started):>7}  {text}"
            self.console.print(line, highlight=False, soft_wrap=True)
            self.console.file.flush()

    def pulse(self, text: str | None = None) -> None:
        """Say `text`, or that what was said last goes on, if nothing was said for a while."""
        if self.clock() - self.last < SILENCE_SECONDS:
            return
        stage = self.under_way
        self.say(text or f"still at it: {stage.removeprefix('still at it: ')}")


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02} s" if minutes else f"{rest} s"


def progress_bars(console: Terminal) -> Progress:
    """Bars on a terminal; nothing elsewhere. A task's field `note` stands behind its bar."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    last = TextColumn("{task.fields[note]}", markup=False)
    return Progress(*columns, TimeElapsedColumn(), last, console=console, disable=not console.is_terminal)


def follower(progress: Progress, lines: Lines) -> Follow:
    """Follow pieces of work of known size: a bar each, or a line at the start, at the end and now and then."""

    def follow(what: str) -> Callable[[int, int], None]:
        bar = progress.add_task(printable(what), total=None, note="", start=False)
        began: list[tuple[float, int]] = []

        def show(done: int, total: int) -> None:
            now = lines.clock()
            if not began:
                began.append((now, done))
                progress.start_task(bar)
            start, first = began[0]
            left = (now - start) / (done - first) * (total - done) if done > first else 0.0
            note = f"about {duration(left)} left" if left else ""
            progress.update(bar, total=total, completed=done, note=note)
            line = ", ".join(filter(None, (f"{what}: {done} of {total}", note)))
            if line != lines.under_way and (done in (first, total)):
                lines.say(line)
            else:
                lines.pulse(line)

        return show

    return follow
