"""Preference data of a run in tokens: read, rendered and tokenised once, and kept on disk for the next start."""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fgrpo_plugin.folders import expanded, remove_parts
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.manifest import MANIFEST, damage, write_manifest
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.files import PreferenceData, digests_of, stream_preferences
from fgrpo_plugin.preference.formats import LabelledResponse
from fgrpo_plugin.preference.template import answer_end, special_tokens
from fgrpo_plugin.preference.token_rows import TokenRows
from fgrpo_plugin.preference.tokens import Encoded, encode, template_problem

VERSION = 1  # of what is kept: raise it where rows of the same file come out otherwise
CHECKED_ROWS = 64
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class RowSettings:
    """What rows depend on beside their files.

    Attributes:
        max_prompt_length: tokens, verl's `data.max_prompt_length`.
        max_response_length: tokens, verl's `data.max_response_length`.
        template: further arguments of the chat template.
        stops: from `stop_tokens`.
    """

    max_prompt_length: int
    max_response_length: int
    template: Mapping[str, Any]
    stops: tuple[int, ...] = ()


@dataclass
class LoadedRows:
    """Rows in tokens.

    Attributes:
        rows: those that can be used.
        lines: what was read and what was left out, for the log.
        digests: file -> hash of its content.
    """

    rows: TokenRows
    lines: list[str]
    digests: dict[str, str]


def load_rows(
    wanted: PreferenceConfig,
    held_out: bool,
    tokenizer: Any,
    settings: RowSettings,
    folder: Path,
    say: Callable[[str], None] = say,
) -> LoadedRows:
    """The rows of `files`, or of `val_files`.

    Args:
        wanted: the section `data.preference`.
        held_out: whether those of `val_files`.
        tokenizer: the model's.
        settings: lengths, template and stop tokens of the run.
        folder: where rows are kept, under a name of everything that they depend on.
        say: gets a line now and then while rows are tokenised.

    Raises:
        ValueError: as `read_preferences` and `encode`; a file changed while it was read; or desirable or undesirable
            rows alone are left.
    """
    files, split = (wanted.val_files, wanted.val_split) if held_out else (wanted.files, wanted.split)
    name = "val_files" if held_out else "files"
    reading: dict[str, Any] = {"split": split, "config": wanted.config, "columns": wanted.columns}
    digests = digests_of(files, split=split, config=wanted.config)
    place = _place(folder, digests, reading, wanted, tokenizer, settings)
    loaded = _kept(place, digests, say)
    if loaded is None:
        end = answer_end(tokenizer, settings.template, settings.stops)
        found = PreferenceData()
        first: list[LabelledResponse] = []
        progress = _Progress(say)
        rows = stream_preferences(files, found, on_bad_row=wanted.on_bad_row, **reading)
        encoded = encode(
            _flat(rows, first, progress),
            tokenizer,
            max_prompt_length=settings.max_prompt_length,
            max_response_length=settings.max_response_length,
            on_too_long=wanted.on_too_long,
            on_bad_row=wanted.on_bad_row,
            on_templated=wanted.on_templated,
            template=settings.template,
            end=end.token,
            said=progress.line,
        )
        if digests_of(files, split=split, config=wanted.config) != digests:  # else kept under what the files were
            raise ValueError(
                f"data.preference.{name} ({', '.join(files)}): a file changed while it was read; let what "
                "writes it finish, and start again."
            )
        lines = _lines(found, encoded)
        problems = {
            template_problem(row, tokenizer, settings.template, end.token) for row in _renderable(first, encoded)
        }
        lines += [f"  template: {problem}" for problem in (end.problem, *sorted(filter(None, problems))) if problem]
        loaded = LoadedRows(encoded.rows, lines, digests)
        if len(encoded.rows):
            loaded = _keep(place, loaded, say)
    desirable = int(loaded.rows.desirable.sum())
    if desirable in (0, len(loaded.rows)):
        raise ValueError(
            f"data.preference.{name} ({', '.join(files)}): desirable or undesirable rows alone are left; both are "
            "needed." + "".join(f"\n{line}" for line in loaded.lines)
        )
    return loaded


def _flat(rows: Iterator[Any], first: list[LabelledResponse], progress: "_Progress") -> Iterator[LabelledResponse]:
    for some, share in rows:
        progress.share = share
        if len(first) < CHECKED_ROWS:
            first += some
        yield from some


def _renderable(first: list[LabelledResponse], encoded: Encoded) -> list[LabelledResponse]:
    """Of the first rows those that were not left out for what they hold."""
    kept = {row.source for row in islice(encoded.rows, 2 * CHECKED_ROWS)}
    return [row for row in first if row.source in kept]


def _lines(found: PreferenceData, encoded: Encoded) -> list[str]:
    desirable = int(encoded.rows.desirable.sum())
    files = ", ".join(f"{file} ({name})" for file, name in found.formats.items())
    lines = [
        f"{len(encoded.rows)} preference rows, {desirable} of them desirable, of {found.examples} examples in {files}"
    ]
    lines += [f"  {line}" for line in found.left_out()]
    lines += [
        f"  left out: {count} rows: {reason} (first: {encoded.first_skipped[reason]})"
        for reason, count in encoded.skipped.most_common()
    ]
    return lines + [f"  too long: {count} {what}" for what, count in encoded.too_long.items()]


def _place(
    folder: Path,
    digests: Mapping[str, str],
    reading: Mapping[str, Any],
    wanted: PreferenceConfig,
    tokenizer: Any,
    settings: RowSettings,
) -> Path | None:
    """Return where these rows are kept, or None for a tokenizer of which it cannot be told whether it is the same."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    key = {
        "version": VERSION,
        "files": list(digests.items()),
        "reading": reading,
        "on": [wanted.on_bad_row, wanted.on_too_long, wanted.on_templated],
        "lengths": [settings.max_prompt_length, settings.max_response_length],
        "template": settings.template,
        "stops": list(settings.stops),
        "chat_template": tokenizer.chat_template,
        "special": [special_tokens(tokenizer), tokenizer.eos_token_id],
        "tokenizer": backend.to_str(),
    }
    text = json.dumps(key, sort_keys=True, default=str)
    return expanded(folder) / "tokens" / hashlib.sha256(text.encode()).hexdigest()[:24]


def _kept(place: Path | None, digests: dict[str, str], say: Callable[[str], None]) -> LoadedRows | None:
    if place is None or not (place / MANIFEST).is_file():  # nothing, or of an earlier version that listed no files
        return None
    if (problem := damage(place)) is not None:
        say(f"fgrpo-plugin: {place}: {problem}; it is removed, and its rows are made anew.")
        shutil.rmtree(place, ignore_errors=True)
        return None
    try:
        return LoadedRows(TokenRows.load(place), json.loads((place / "lines.json").read_text()), digests)
    except (OSError, ValueError):  # another run has removed it meanwhile
        return None


def _keep(place: Path | None, loaded: LoadedRows, say: Callable[[str], None]) -> LoadedRows:
    """Write the rows under another name and rename, so that no reader sees a part; they are then read from disk."""
    if place is None:
        return loaded
    part = place.with_name(f".{uuid.uuid4().hex}")
    try:
        part.mkdir(parents=True)
        loaded.rows.save(part)
        (part / "lines.json").write_text(json.dumps(loaded.lines, indent=1))
        write_manifest(part, whole=None)
        if place.is_dir() and not (place / MANIFEST).is_file():  # of an earlier version
            shutil.rmtree(place)
        os.replace(part, place)
        remove_parts(place.parent)
    except OSError:  # no room, not ours to write, or another run was first: they stay in memory
        shutil.rmtree(part, ignore_errors=True)
        if not (place / MANIFEST).is_file():
            return loaded
    return _kept(place, loaded.digests, say) or loaded


class _Progress:
    """A line every few seconds: how many rows are in tokens, and how long the rest will take."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.share: Callable[[], float] = lambda: 0.0
        self._say, self._begun = say, time.monotonic()
        self._last = self._begun

    def line(self, rows: int) -> None:
        now, share = time.monotonic(), self.share()
        if now - self._last < SECONDS_BETWEEN_LINES or not 0 < share <= 1:
            return
        self._last = now
        left = (now - self._begun) * (1 - share) / share
        self._say(f"fgrpo-plugin: {rows} preference rows in tokens, {share:.0%} of the files; {left:.0f} s left")
