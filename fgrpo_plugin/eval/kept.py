"""A file of responses: written as they come, continued where it stopped, refused where it is of other settings."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Responses = dict[str, list[dict[str, Any]]]
"""Id of a prompt -> its responses: `text`, `tokens` (None: unknown), and `ended`, whether it ended by itself."""

Chats = Mapping[str, Sequence[Mapping[str, str]]]
"""Id of a prompt -> its messages."""


class KeptResponses:
    """The responses that a file holds: settings in its first line, then a JSON line a prompt.

    Args:
        path: of the file.
        settings: of the sampling; whatever changes a response.

    Raises:
        ValueError: the file is of other settings, or no file of responses.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        if path.is_file():
            self._check()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"settings": self.settings}) + "\n")

    def _check(self) -> None:
        with self.path.open() as lines:
            first = lines.readline()
        try:
            found = json.loads(first)["settings"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.path} does not begin with settings, so it holds no responses; name another folder."
            ) from None
        check_same(self.path, found, self.settings)

    def read(self, chats: Chats) -> Responses:
        """Return those of the prompts that are there, each with a whole line.

        Raises:
            ValueError: one was asked otherwise, or a line is spoilt.
        """
        with self.path.open(newline="\n") as file:  # a response may hold any other sign for a new line
            lines = [line for line in file if line.endswith("\n")][1:]
        try:
            rows = [json.loads(line) for line in lines]
            found = {row["id"]: (row["asked"], row["responses"]) for row in rows if row["id"] in chats}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path} is spoilt; remove it, or name another folder.") from None
        for key, (asked, _) in found.items():
            if asked != _digest(chats[key]):
                raise ValueError(
                    f"{self.path} has responses to another prompt than is asked now ({key}); remove it, or name "
                    "another folder."
                )
        return {key: responses for key, (_, responses) in found.items()}

    @contextlib.contextmanager
    def more(self, chats: Chats) -> Iterator[Callable[[str, Sequence[Mapping[str, Any]]], None]]:
        """Append responses to prompts; a line that broke off is dropped first."""
        text = self.path.read_bytes()
        if not text.endswith(b"\n"):  # of a run that was killed while it wrote
            with self.path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        with self.path.open("a") as lines:

            def add(key: str, responses: Sequence[Mapping[str, Any]]) -> None:
                lines.write(json.dumps({"id": key, "asked": _digest(chats[key]), "responses": list(responses)}) + "\n")
                lines.flush()

            yield add


def check_same(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what was made with other settings than are given now.

    Raises:
        ValueError: each setting that differs, what it was and what it is now.
    """
    keys = dict.fromkeys([*found, *settings])
    other = [f"{key} {found.get(key)}, now {settings.get(key)}" for key in keys
             if found.get(key) != settings.get(key)]  # fmt: skip
    if other:
        raise ValueError(
            f"{path} was made with other settings ({'; '.join(other)}); remove it, or name another folder."
        )


def _digest(chat: Sequence[Mapping[str, str]]) -> str:
    return hashlib.sha256(json.dumps(list(chat), sort_keys=True).encode()).hexdigest()[:16]
