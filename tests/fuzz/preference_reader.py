"""Throw made files at the reader of preference data: it reads them right or refuses them with a ValueError.

    pip install -r requirements/fuzz.txt
    python -m tests.fuzz.preference_reader tests/fuzz/seeds -max_total_time=3600

Each input is bytes: the first tells the kind of file, the others are its content, or choices of which rows are made of
known columns and values in every shape. Inputs that once failed are kept among the seeds; tests/fuzz/test_seeds.py runs
them all.
"""

import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fgrpo_plugin.preference.files import read_preferences, write_preferences
from fgrpo_plugin.preference.readers import (
    ANSWER_KEYS,
    CHOICES,
    FORMATS,
    LABEL,
    READABLE,
    RESPONSES,
    SCORE_KEYS,
    SCORES,
)
from fgrpo_plugin.preference.tokens import encode

KINDS = (".jsonl", ".json", ".jsonl.gz")
COLUMNS = (*READABLE, "tools", "history", "question", "note", "id")
TEXTS = ("", " ", "a", "b", "2+2?", "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant:", "1", "0.5", "tie")
TEXTS += ("A", "response_0", "[INST]", "\u2028", "\ud800", '[{"role": "user"}]', "true", "x" * 300)
NUMBERS = (0, 1, -1, 2, 0.5, 1.0, 1e308, -1e308, 10**30, float("nan"), float("inf"), True, False, None)
ROLES = ("user", "assistant", "system", "human", "gpt", "tool", "bear", "", None, 3)


class Choices:
    """Choices that follow from bytes; all 0 once they are used up."""

    def __init__(self, data: bytes):
        self._data, self._place = data, 0

    def below(self, most: int) -> int:
        """A number from 0 to most - 1."""
        self._place += 1
        return self._data[self._place - 1] % most if self._place <= len(self._data) else 0

    def of(self, values: Any) -> Any:
        """One of the values."""
        return values[self.below(len(values))]

    @property
    def over(self) -> bool:
        """Whether the bytes are used up."""
        return self._place >= len(self._data)


def value(choices: Choices, depth: int = 0) -> Any:
    """A text, number, message, list or object."""
    kind = choices.below(8 if depth < 3 else 3)
    if kind < 2:
        return choices.of(TEXTS)
    if kind == 2:
        return choices.of(NUMBERS)
    if kind < 5:
        return [message(choices) for _ in range(choices.below(4))]
    if kind == 5:
        return [value(choices, depth + 1) for _ in range(choices.below(4))]
    if kind == 6:
        return message(choices)
    keys = (*ANSWER_KEYS, *SCORE_KEYS, "messages", "tools", "other")
    return {choices.of(keys): value(choices, depth + 1) for _ in range(choices.below(4))}


def message(choices: Choices) -> dict[str, Any]:
    """A message, most often a right one."""
    keys = choices.of((("role", "content"), ("role", "content"), ("from", "value"), ("role", "value")))
    found = {keys[0]: choices.of(ROLES), keys[1]: choices.of(TEXTS) if choices.below(4) else choices.of(NUMBERS)}
    if not choices.below(6):
        found[choices.of(("name", "tool_calls", "thinking", "content", "from"))] = choices.of(TEXTS)
    return found


def rows(choices: Choices) -> list[dict[str, Any]]:
    """Rows of one format's columns, now and then with others."""
    format = choices.of(FORMATS)
    names = [choices.of(names) for names in format.columns]
    found = []
    while not choices.over and len(found) < 6:
        row = {name: usual(name, choices) if choices.below(8) else value(choices) for name in names}
        if not choices.below(6):
            row[choices.of(COLUMNS)] = value(choices)
        if not choices.below(12):
            row.popitem()
        found.append(row)
    return found


def usual(name: str, choices: Choices) -> Any:
    """A value as such a column most often has it."""
    words = ("one", "two", "three", "2+2?")
    if name in (*LABEL, "desirable"):
        return choices.of((True, False, 1, 0, 1.0, "true"))
    if name in CHOICES:
        return choices.of((0, 1, 2, -1, "A", "b", "tie", "model_a", "response_1"))
    if name in SCORES:
        return [choices.of((1, 2, 3.5, "4")) for _ in range(2)]
    if name in (*RESPONSES, "answers"):
        if choices.below(2):
            return [choices.of(words) for _ in range(2)]
        return [{choices.of(ANSWER_KEYS): choices.of(words), choices.of(SCORE_KEYS): n} for n in range(2)]
    if name == "input":
        return {"messages": [{"role": "user", "content": choices.of(words)}]}
    if name in ("pair", "source", "system", "system_prompt"):
        return choices.of((*words, "", None, 1))
    turns = [{"role": "user", "content": choices.of(words)}, {"role": "assistant", "content": choices.of(words)}]
    begin, end = choices.of(((0, 1), (1, 2), (0, 2), (0, 0), (0, 0)))
    return turns[begin:end] or choices.of((*words, "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant:"))


def content_of(data: bytes) -> tuple[str, bytes, dict[str, Any]]:
    """Ending, content and columns that an input stands for."""
    kind, rest = (data[0] if data else 0), data[1:]
    ending = KINDS[kind % len(KINDS)]
    columns: dict[str, Any] = {}
    content = rest
    if kind >= 128:
        choices = Choices(rest)
        if not choices.below(4):
            columns = {choices.of(READABLE): choices.of((None, *COLUMNS, ["prompt", "note"], "a.b"))}
        made = rows(choices)
        text = json.dumps(made) if ending == ".json" else "".join(json.dumps(row) + "\n" for row in made)
        content = text.encode()
    return ending, gzip.compress(content) if ending.endswith(".gz") else content, columns


def run(data: bytes, folder: Path, tokenizer: Any) -> int:
    """Read one input and hold what came of it to what rows have to be; the number of rows.

    Raises:
        AssertionError: a row that may not be.
        Exception: whatever the reader raised that is not a ValueError of one line.
    """
    ending, content, columns = content_of(data)
    file = folder / f"input{ending}"
    file.write_bytes(content)
    try:
        found = read_preferences([file], columns=columns, on_bad_row="skip")
    except ValueError as reason:
        assert type(reason) is ValueError and str(reason) and "\n" not in str(reason), repr(reason)
        return 0
    for row in found.rows:
        assert row.prompt and row.prompt[-1][0] != "assistant" and row.response.strip()
        assert any(content.strip() for _, content in row.prompt)
        assert isinstance(row.desirable, bool) and row.source
    pairs = [row.pair for row in found.rows if row.pair is not None]
    assert all(pairs.count(pair) <= 2 for pair in pairs)
    assert len(found.left_out()) < 50 and all(len(line) < 2000 for line in found.left_out())
    write_preferences(found.rows, folder / "rows.parquet")
    assert read_preferences([folder / "rows.parquet"]).rows == found.rows
    limits: dict[str, Any] = {"max_prompt_length": 10_000, "max_response_length": 10_000}
    encoded = encode(found.rows, tokenizer, on_bad_row="skip", on_templated="skip", **limits)
    assert len(encoded.rows) < len(found.rows) if encoded.skipped else len(encoded.rows) == len(found.rows)
    return len(found.rows)


def main() -> None:
    """Fuzz until atheris is told to stop."""
    import atheris

    from fgrpo_plugin import tables
    from fgrpo_plugin.preference import files, formats, messages, readers
    from fgrpo_plugin.quickstart.model import build_tokenizer

    tokenizer = build_tokenizer()
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    for name in ("messages", "readers", "formats", "files"):
        atheris.instrument_imports(include=[f"fgrpo_plugin.preference.{name}"])
    for function in functions_of(tables, messages, readers, formats, files):
        atheris.instrument_func(function)
    atheris.Setup(sys.argv, lambda data: run(data, folder, tokenizer) and None)
    atheris.Fuzz()


def functions_of(*modules: Any) -> list[Any]:
    """The functions that these modules define."""
    import inspect

    return [
        function
        for module in modules
        for function in vars(module).values()
        if inspect.isfunction(function) and function.__module__ == module.__name__
    ]


if __name__ == "__main__":
    main()
