"""`fgrpo prefs check`: what is in preference data, before anything is trained on them."""

import random
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from fgrpo_plugin.preference.files import PreferenceData
from fgrpo_plugin.preference.loading import RowSettings
from fgrpo_plugin.preference.messages import BadRow
from fgrpo_plugin.preference.template import answer_end
from fgrpo_plugin.preference.token_rows import TokenRow
from fgrpo_plugin.preference.tokens import Encoder, special_pattern, template_problem, templated_mark
from fgrpo_plugin.terminal import Terminal

SHOWN_ROWS = 10
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Measured:
    """Rows as a run would have them.

    Attributes:
        encoder: of the model's tokenizer; takes templated text, which is counted by itself.
        settings: lengths and template of the run.
        problem: what is odd about where a response ends, or None.
    """

    tokenizer: Any
    encoder: Encoder
    settings: RowSettings
    problem: str | None

    @classmethod
    def of(cls, tokenizer: Any, settings: RowSettings) -> "Measured":
        """With the token that ends a response."""
        end = answer_end(tokenizer, settings.template, settings.stops)
        return cls(tokenizer, Encoder(tokenizer, settings.template, end.token), settings, end.problem)


@dataclass(frozen=True)
class Reported:
    """What a report came to.

    Attributes:
        usable: whether a run takes all rows at its defaults.
        rows: in tokens, whatever their length; None without a tokenizer.
    """

    usable: bool
    rows: list[TokenRow] | None


def print_report(
    found: PreferenceData,
    console: Terminal,
    *,
    measured: Measured | None = None,
    seed: int = 0,
    said: Callable[[int, Callable[[], float]], None] = lambda rows, share: None,
) -> Reported:
    """Print counts of desirable and undesirable rows, lengths, duplicates, template problems, and ten random rows.

    Args:
        found: from `read_preferences`, with bad rows skipped, so that all of them are counted; rows that the template
            cannot render are moved to them.
        console: where it goes.
        measured: with the model's tokenizer; without it lengths are in characters and the template is not looked at.
        seed: of the random rows.
        said: called as rows are measured, with their number and a function that tells the share of all.
    """
    encoded = _encode(found, measured, said) if measured is not None else None
    for file, name in found.formats.items():
        columns = f"; not read: {', '.join(found.ignored[file])}" if found.ignored[file] else ""
        console.print(f"{file}: format {name}{columns}", highlight=False)
    console.print(_counts(found))
    console.print(_lengths(found, encoded))
    templated = _templated(found, measured)
    for line in [*templated, *_template_lines(found, measured)]:
        console.print(line, style="yellow", highlight=False)
    if measured is not None and encoded is not None:
        for line in _too_long(encoded, measured.settings):
            console.print(line, style="yellow", highlight=False)
    for reason, count in found.skipped.most_common():
        text = f"cannot be used: {count} x {reason} (first: {found.first_skipped[reason]})"
        console.print(text, style="red", highlight=False)
    sides = {row.desirable for row in found.rows}
    if len(sides) == 1:
        console.print("desirable or undesirable rows alone: training needs both", style="red", highlight=False)
    console.print(_examples(found, seed))
    return Reported(not templated and not found.skipped and len(sides) == 2, encoded)


def _encode(
    found: PreferenceData, measured: Measured, said: Callable[[int, Callable[[], float]], None]
) -> list[TokenRow]:
    """Rows in tokens; those that the template refuses are counted with the rows that cannot be used."""
    rows, kept, total = [], [], len(found.rows)
    encoded_rows = measured.encoder.encode(found.rows)
    for done, (row, encoded) in enumerate(zip(found.rows, encoded_rows, strict=True), start=1):
        said(done, lambda done=done: done / total)  # type: ignore[misc]
        if isinstance(encoded, BadRow):
            found.skip(encoded, row.source)
        else:
            kept.append(row)
            rows.append(encoded)
    found.rows = kept
    return rows


def _templated(found: PreferenceData, measured: Measured | None) -> list[str]:
    special = special_pattern(measured.tokenizer) if measured is not None else None
    marked = [(row.source, mark) for row in found.rows if (mark := templated_mark(row, special)) is not None]
    if not marked:
        return []
    source, mark = marked[0]
    return [
        f"templated: {len(marked)} of {len(found.rows)} rows hold marks of a chat template or special tokens, and "
        f"would go through the template once more (first: {source}: {mark!r}); a run refuses them unless "
        "data.preference.on_templated is skip or keep"
    ]


def _template_lines(found: PreferenceData, measured: Measured | None) -> list[str]:
    lines = []
    turns = [row.source for row in found.rows if "\n\nAssistant:" in row.prompt[-1][1]]
    if turns:
        what = "a prompt that holds turns 'Human:' and 'Assistant:' as text is one message of the user to the template"
        lines.append(f"{what}: {len(turns)} rows (first: {turns[0]})")
    if measured is None:
        return lines
    settings, end = measured.settings, measured.encoder.end
    problems = Counter(template_problem(row, measured.tokenizer, settings.template, end) for row in found.rows)
    lines += [f"template: {measured.problem}"] if measured.problem else []
    return lines + [
        f"template: {problem}: {count} of {len(found.rows)} rows" for problem, count in problems.items() if problem
    ]


def _too_long(encoded: list[TokenRow], settings: RowSettings) -> list[str]:
    lines = []
    for name, most, lengths in (
        ("prompt", settings.max_prompt_length, [row.prompt_length for row in encoded]),
        ("response", settings.max_response_length, [row.response_length for row in encoded]),
    ):
        longer = sum(length > most for length in lengths)
        if longer:
            lines.append(
                f"too long: {longer} of {len(encoded)} rows have a {name} of more than {most} tokens; a run refuses "
                f"them unless data.max_{name}_length is raised, or data.preference.on_too_long is drop or truncate"
            )
    return lines


def _counts(found: PreferenceData) -> Table:
    rows = found.rows
    desirable = sum(row.desirable for row in rows)
    prompts = {row.prompt for row in rows}
    both = Counter((row.prompt, row.response, row.desirable) for row in rows)
    sides: dict[tuple, set[bool]] = {}
    for row in rows:
        sides.setdefault((row.prompt, row.response), set()).add(row.desirable)
    table = Table("", "count", title="preference data")
    for name, count in (
        ("examples", found.examples),
        ("examples that cannot be used", sum(found.skipped.values())),
        ("responses at the mean of their scores, left out", found.at_mean),
        ("pairs without a preference, left out", found.ties),
        ("rows", len(rows)),
        ("desirable (D+)", desirable),
        ("undesirable (D-)", len(rows) - desirable),
        ("pairs", len({row.pair for row in rows if row.pair is not None})),
        ("different prompts", len(prompts)),
        ("duplicate rows", sum(count - 1 for count in both.values())),
        ("responses both desirable and undesirable", sum(len(both_sides) == 2 for both_sides in sides.values())),
    ):
        table.add_row(name, str(count))
    return table


def _lengths(found: PreferenceData, encoded: list[TokenRow] | None) -> Table:
    unit = "characters" if encoded is None else "tokens"
    lengths: dict[str, list[int]] = {"prompt": [], "desirable response": [], "undesirable response": []}
    for place, row in enumerate(found.rows):
        if encoded is None:
            prompt, response = sum(len(content) for _, content in row.prompt), len(row.response)
        else:
            prompt, response = encoded[place].prompt_length, encoded[place].response_length
        lengths["prompt"].append(prompt)
        lengths["desirable response" if row.desirable else "undesirable response"].append(response)
    table = Table("", "median", "95 %", "longest", title=f"lengths in {unit}")
    for name, values in lengths.items():
        if values:
            ordered = sorted(values)
            nearly_all = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
            table.add_row(name, f"{statistics.median(ordered):g}", str(nearly_all), str(ordered[-1]))
    return table


def _examples(found: PreferenceData, seed: int) -> Table:
    table = Table("side", "prompt, its end", "response", "from", title="random rows", show_lines=True)
    for row in random.Random(seed).sample(found.rows, min(SHOWN_ROWS, len(found.rows))):
        prompt = row.prompt[-1][1]
        shown = (prompt[-SHOWN_CHARACTERS:], row.response[:SHOWN_CHARACTERS], row.source)
        table.add_row("D+" if row.desirable else "D-", *shown)
    return table
