"""Make docs/commands.md from the command line itself:  python docs/make/commands.py"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fgrpo_plugin.cli import app

DOCS = Path(__file__).parents[1]
PAGE = """# Commands

Made by `python docs/make/commands.py` from the commands' own help; `fgrpo COMMAND --help` prints the same.

| command | |
| --- | --- |
{overview}

{commands}
"""


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its whole name."""
    if hasattr(command, "commands"):
        for word, below in command.commands.items():
            yield from _commands(below, f"{name} {word}")
    else:
        yield name, command


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def _option(parameter: Any) -> list[str]:
    """A row of a command's table: how it is written, its default, what it means."""
    if parameter.param_type_name == "argument":
        name = f"`{parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{word}`" for word in [*parameter.opts, *parameter.secondary_opts])
    more = " Repeatable." if parameter.multiple and "epeatable" not in (parameter.help or "") else ""
    return [name, _default(parameter), _text(parameter.help) + more]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.default, bool):
        return f"`{parameter.default}`".lower()
    return f"`{parameter.default}`" if isinstance(parameter.default, str | int | float | Path) else ""


def _section(name: str, command: Any) -> str:
    parameters = [one for one in command.params if one.name != "help"]
    lines = [f"## {name}", "", _text(command.help)]
    if parameters:
        lines += ["", "| option | default | meaning |", "| --- | --- | --- |"]
        lines += ["| " + " | ".join(_option(one)) + " |" for one in parameters]
    return "\n".join(lines)


def page() -> str:
    """The text of docs/commands.md."""
    found = list(_commands(typer.main.get_command(app), "fgrpo"))
    anchors = [
        f"| [{name}](#{name.replace(' ', '-')}) | {_text(one.help).split('. ')[0].rstrip('.')} |" for name, one in found
    ]
    return PAGE.format(overview="\n".join(anchors), commands="\n\n".join(_section(*one) for one in found))


def draw(folder: Path) -> None:
    """The page has no picture."""


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(page())
