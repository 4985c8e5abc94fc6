"""Whatever is printed by rich is text."""

import io

import pytest
from rich.table import Table

from fgrpo_plugin.progress import Lines, follower, progress_bars
from fgrpo_plugin.terminal import Terminal
from tests.support.hostile import HOSTILE, STEERING


def shown(show, text):
    file = io.StringIO()
    show(Terminal(file=file, width=20_000, color_system=None), text)
    return file.getvalue()


def table(console, text):
    made = Table(text, title=text)
    made.add_row(text)
    console.print(made)


WAYS = {
    "line": lambda console, text: console.print(text),
    "styled": lambda console, text: console.print(text, style="red"),
    "asked for markup": lambda console, text: console.print(text, markup=True, emoji=True),
    "table": table,
    "progress": lambda console, text: Lines(console).say(text),
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("way", WAYS)
def test_it_is_shown_as_it_is(way, text):
    found = shown(WAYS[way], text)
    assert not set(STEERING) & set(found)
    for word in ("[red]red[/red]", "[/nothing]", ":skull:", "<img", "{{ 7 * 7 }}"):
        assert (word in text) == (word in found)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_bar_of_a_terminal_is_named_with_it(text):
    file = io.StringIO()
    console = Terminal(file=file, width=200, force_terminal=True, color_system=None, legacy_windows=False)
    with progress_bars(console) as progress:
        follower(progress, Lines(console))(text)(1, 2)
    assert not set("\x00\x07\x9b\x9d\u202e\ud800") & set(file.getvalue())
    assert "[31m" not in file.getvalue().replace(r"\x1b[31m", "").replace(r"\x9b31m", "")


@pytest.mark.parametrize("way", WAYS)
def test_it_is_shown_where_the_output_has_no_letters_for_it(way):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    WAYS[way](Terminal(file=file, width=200, color_system=None), "grün 漢")
    file.flush()
    assert r"gr\xfcn \u6f22" in file.buffer.getvalue().decode("ascii")
