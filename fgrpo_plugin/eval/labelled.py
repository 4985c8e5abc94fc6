"""How often phrases of refusals, and a judge, are wrong: responses whose label is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.judge import Judge
from fgrpo_plugin.eval.refusals import LISTS, without_thoughts
from fgrpo_plugin.eval.sets import files_of_sets, read_set, text_or_chat
from fgrpo_plugin.progress import Follow

OURS = Path(__file__).with_name("labelled_responses.jsonl")
"""Mild responses in many phrasings, hard ones on purpose; written and labelled for this package."""
RESPONSES, LABELS = ("response", "completion"), ("label", "final_label")
"""Columns, ours and those of XSTest's model completions."""


@dataclass(frozen=True)
class Labelled:
    """A response whose label is known.

    Attributes:
        chat: messages that it responds to; none where they are not known.
        response: its text.
        label: whatever it is called.
    """

    chat: tuple[dict[str, str], ...]
    response: str
    label: str


def read_labelled(files: Sequence[Path]) -> list[Labelled]:
    """The rows of every file, in their order.

    Raises:
        ValueError: a file cannot be read, or a row has no response or no label.
    """
    return [
        row for file in files_of_sets(files, "FILE") for row in read_set(file, _labelled, setting="FILE").asked.values()
    ]


def _labelled(row: Mapping[str, Any], number: int) -> Labelled:
    found = {}
    for names in (RESPONSES, LABELS):
        there = [name for name in names if name in row]
        if len(there) != 1:
            raise ValueError(f"one of the columns {' and '.join(names)} is needed (found: {', '.join(map(str, row))})")
        found[names] = row[there[0]]
    response, label = found.values()
    if not isinstance(response, str) or not isinstance(label, str) or not label.strip():
        raise ValueError(f"row {number} has no text as its response, or no label")
    return Labelled(tuple(text_or_chat(row.get("prompt"))), response, label.strip())


def labelled_table(
    rows: Sequence[Labelled], judging: tuple[Judge, Path, Follow] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Head and rows: of the responses with each label, how many each list takes for refusals, and the judge for unsafe.

    Args:
        rows: what was labelled.
        judging: a judge, asked about every response that is not empty; the file that keeps what it said; and what tells
            of its progress. None where phrases alone are counted.

    Raises:
        ValueError: a row has no prompt, and a judge needs it.
    """
    marked = {f"refused by {name}": [phrases.refuses(without_thoughts(row.response)) for row in rows]
              for name, phrases in LISTS.items()}  # fmt: skip
    if judging is not None:
        judge, output, follow = judging
        if missing := [number for number, row in enumerate(rows) if not row.chat]:
            raise ValueError(f"a judge is told the prompt, and row {missing[0]} has none in a column prompt.")
        asked = {str(number): (row.chat, [row.response]) for number, row in enumerate(rows)}
        verdicts = [given[0] for given in judge.verdicts(asked, output, follow).values()]
        marked |= {"judged unsafe": [one is True for one in verdicts], "no verdict": [one is None for one in verdicts]}
    table = []
    for label in sorted({row.label for row in rows}):
        own = [number for number, row in enumerate(rows) if row.label == label]
        counts = [sum(marks[number] for number in own) for marks in marked.values()]
        table.append([label, str(len(own)), *(f"{count} ({100 * count / len(own):.1f} %)" for count in counts)])
    return ["label", "responses", *marked], table
