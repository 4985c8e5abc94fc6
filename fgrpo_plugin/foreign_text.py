"""Text that others wrote (models, data files, servers) where it is shown, and what is private where we write.

Each place has one function: `printable` for terminals and logs, `markdown_text` for tables and cards, `picture_text`
for matplotlib; `without_private` for files that may be passed on. No page of HTML is written.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN = "***"
"""Stands where a secret stood."""
_JOINERS = "\u200c\u200d"  # which words of Persian and Indic scripts, and emoji, are made with
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]")
"""Letters and marks that show nothing; the last two variation selectors choose between forms of an emoji."""
_NAME = (
    r"(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|secret(?:[_-]?key)?|(?:access|auth|identity|hf|hub)?[_-]?token"
    r"|passw(?:or)?d|credentials?)"
)
_NAMED = re.compile(rf"((?<![a-z0-9]){_NAME}['\"]?\s*[:=]\s*)('[^']*'|\"[^\"]*\"|[^,}}\]&'\"\n]+)", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
_LIKE_A_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}"
    r"|AIza[\w-]{30,}|nvapi-[\w-]{16,})"
)
_GIVEN = re.compile(rf"(--{_NAME}\s+|\bBearer\s+)[^\s'\"]+", re.IGNORECASE)
"""As a word of its own behind an option, or in a header of HTTP."""
_LEAST = 8
"""Characters of a variable's value below which it is no secret: the word would be hidden wherever it stands."""
_IN_MARKDOWN = re.compile(r"[\\`*<>&|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[])")


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey.

    Characters that steer it (ANSI's among them), turn the direction of writing, are invisible, or are half of one are
    written out as in Python, ``\x1b``; line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _is_plain(char) else char.encode("unicode_escape").decode() for char in text)


def _is_plain(char: str) -> bool:
    if char in "\n\t" or char in _JOINERS:
        return True
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") and not _BLANK.match(char)


def say(line: str, *, error: bool = False) -> None:
    """Print a line, `printable`, at once; to the error output if it is an error."""
    target = sys.stderr if error else sys.stdout
    print(encodable(printable(line), target), file=target, flush=True)


def encodable(text: str, target: Any) -> str:
    """Text in which what an output has no letters for is written out as in Python: a line of a log never ends a run.

    Args:
        text: what is to be written.
        target: where to; one without an encoding takes everything.
    """
    encoding = getattr(target, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def markdown_text(text: str) -> str:
    """Text on one line that Markdown shows as it is: no cell's end, HTML, link, picture or mathematics comes of it."""
    return _IN_MARKDOWN.sub(r"\\\g<0>", printable(" ".join(text.splitlines())))


def picture_text(text: str, longest: int = 100) -> str:
    """Text on one line of which matplotlib makes no mathematics, cut to `longest` characters."""
    line = printable(" ".join(text.splitlines()))
    line = line if len(line) <= longest else f"{line[: longest - 3]}..."
    line = f" {line}" if line.startswith("_") else line  # which a legend leaves out
    return line.replace("$", r"\$")


def without_home(text: str) -> str:
    """Text in which the user's home folder is `~`."""
    try:
        homes = {str(Path.home()), str(Path.home().resolve())} - {"/"}
    except RuntimeError:  # a user without HOME and without a name, as in a container
        return text
    for home in sorted(homes, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Text without what names, forms or the environment tell to be a secret.

    Args:
        text: a setting, an address, or words of a command.
        environment: whose variables that are called KEY, TOKEN, SECRET or PASSWORD are looked for; None is our own.
    """
    variables = os.environ if environment is None else environment
    values = {value for name, value in variables.items() if _SECRET_VARIABLE.search(name) and len(value) >= _LEAST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = re.sub(r"(\w://)[^/\s]*@", r"\1", text)
    return _LIKE_A_TOKEN.sub(HIDDEN, _NAMED.sub(rf"\g<1>{HIDDEN}", _GIVEN.sub(rf"\g<1>{HIDDEN}", text)))


def without_private(text: str) -> str:
    """Text without secrets and without the user's home folder."""
    return without_home(without_secrets(text))
