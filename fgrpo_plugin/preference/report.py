"""`fgrpo prefs check`: what is in preference data, before anything is trained on them."""

import random
import statistics
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgrpo_plugin.preference.files import PreferenceData
from fgrpo_plugin.preference.formats import BadRow
from fgrpo_plugin.preference.tokens import encode_row, template_problem

SHOWN_ROWS = 10
SHOWN_CHARACTERS = 200


def print_report(found: PreferenceData, console: Console, *, tokenizer: Any = None, seed: int = 0) -> None:
    """Counts, sides, lengths, duplicates, template problems, and ten random rows.

    Args:
        found: from `read_preferences`, with bad rows skipped, so that all of them are counted; rows that the template
            cannot render are moved to them.
        console: where it goes.
        tokenizer: the model's; without it lengths are in characters and the template is not looked at.
        seed: of the random rows.
    """
    if tokenizer is not None:
        _skip_what_the_template_refuses(found, tokenizer)
    # Text, not markup: users' rows and paths hold brackets and colons of their own.
    for file, name in found.formats.items():
        columns = f"; columns not read: {', '.join(found.ignored[file])}" if found.ignored[file] else ""
        console.print(Text(f"{file}: format {name}{columns}"))
    console.print(_counts(found))
    console.print(_lengths(found, tokenizer))
    if tokenizer is not None:
        problems = Counter(template_problem(row, tokenizer) for row in found.rows)
        for problem, count in problems.items():
            if problem is not None:
                console.print(Text(f"template: {problem}: {count} of {len(found.rows)} rows", style="yellow"))
    turns = [row.source for row in found.rows if "\n\nAssistant:" in row.prompt[-1][1]]
    if turns:
        what = "a prompt that holds turns 'Human:' and 'Assistant:' as text is one message of the user to the template"
        console.print(Text(f"{what}: {len(turns)} rows (first: {turns[0]})", style="yellow"))
    for reason, count in found.skipped.most_common():
        text = f"cannot be used: {count} x {reason} (first: {found.first_skipped[reason]})"
        console.print(Text(text, style="red"))
    sides = {row.desirable for row in found.rows}
    if len(sides) == 1:
        console.print(Text("one side alone: training needs D+ and D- rows", style="red"))
    console.print(_examples(found, seed))


def _skip_what_the_template_refuses(found: PreferenceData, tokenizer: Any) -> None:
    rows = []
    for row in found.rows:
        try:
            encode_row(row, tokenizer)
        except BadRow as reason:
            found.skipped[str(reason)] += 1
            found.first_skipped.setdefault(str(reason), row.source)
        else:
            rows.append(row)
    found.rows = rows


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
        ("rows", len(rows)),
        ("desirable (D+)", desirable),
        ("undesirable (D-)", len(rows) - desirable),
        ("pairs", len({row.pair for row in rows if row.pair is not None})),
        ("different prompts", len(prompts)),
        ("duplicate rows", sum(count - 1 for count in both.values())),
        ("responses on both sides", sum(len(both_sides) == 2 for both_sides in sides.values())),
    ):
        table.add_row(name, str(count))
    return table


def _lengths(found: PreferenceData, tokenizer: Any) -> Table:
    unit = "characters" if tokenizer is None else "tokens"
    lengths: dict[str, list[int]] = {"prompt": [], "desirable response": [], "undesirable response": []}
    for row in found.rows:
        if tokenizer is None:
            prompt, response = sum(len(content) for _, content in row.prompt), len(row.response)
        else:
            encoded = encode_row(row, tokenizer)
            prompt, response = encoded.prompt_length, encoded.response_length
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
        table.add_row("D+" if row.desirable else "D-", *map(Text, shown))
    return table
