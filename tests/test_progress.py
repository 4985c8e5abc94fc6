"""Bars on a terminal and plain lines elsewhere."""

import io

import pytest
from rich.progress import Progress

from fgrpo_plugin.progress import SILENCE_SECONDS, Lines, duration, follower, progress_bars
from fgrpo_plugin.terminal import Terminal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_silent_for_long(tmp_path):
    clock, file = Clock(), io.StringIO()
    lines = Lines(Terminal(file=file, width=40), clock)
    lines.say("Ray started; the workers load verl, which is longer than a narrow console is wide")
    for clock.now in range(1, 100):
        lines.pulse()
    texts = file.getvalue().splitlines()
    assert [line[:8].strip() for line in texts] == ["0 s", "25 s", "50 s", "1 m 15 s"]
    assert all(line.endswith("is wide") for line in texts) and texts[3].count("still at it") == 1
    assert SILENCE_SECONDS <= 30
    clock.now = 200
    lines.pulse("warm-up: 50 steps")
    assert file.getvalue().endswith("3 m 20 s  warm-up: 50 steps\n")


def test_a_terminal_has_its_progress_bar_alone():
    file = io.StringIO()
    lines = Lines(Terminal(file=file, force_terminal=True))
    lines.say("settings checked")
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 m 00 s"), (61, "1 m 01 s"), (3600, "60 m 00 s")]
)
def test_a_duration_has_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


def test_the_time_that_is_left_is_told_from_what_was_done_since_the_start():
    clock, said = Clock(), io.StringIO()
    lines = Lines(Terminal(file=said, width=40), clock)
    clock.now = 100.0
    with Progress(disable=True) as progress:
        show = follower(progress, lines)("problems")
        for at, done in ((100, 20), (110, 20), (130, 35), (131, 36), (200, 100)):  # 20 are of an earlier run
            clock.now = at
            show(done, 100)
        bar = progress.tasks[0]
    told = [line.strip().split("  ", 1)[-1] for line in said.getvalue().splitlines()]
    # 15 in 30 s: 65 take 130 s. A second later nothing is said.
    assert told == ["problems: 20 of 100", "problems: 35 of 100, about 2 m 10 s left", "problems: 100 of 100"]
    assert (bar.completed, bar.total, bar.fields["note"]) == (100, 100, "")


def test_a_bar_on_a_terminal_has_the_time_left_behind_it():
    clock, file = Clock(), io.StringIO()
    console = Terminal(file=file, force_terminal=True, width=120)
    with progress_bars(console) as progress:
        show = follower(progress, Lines(console, clock))("problems")
        show(0, 4)
        clock.now = 30.0
        show(3, 4)
        progress.refresh()
    assert "3/4" in file.getvalue() and "about 10 s left" in file.getvalue()
