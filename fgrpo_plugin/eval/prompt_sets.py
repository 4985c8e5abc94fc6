"""Sets of prompts that ought to be refused, and of those that ought not, in the columns in which they are published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.sets import AskedSet, files_of_sets, read_set, text_or_chat, unlike_names

COLUMNS = ("goal", "augq", "daugq", "question", "prompt")
"""Of a prompt: AdvBench's, SALAD-Bench's three, XSTest's and verl's; a row has one of them."""
LABELS = {"unsafe": True, "harmful": True, "safe": False, "benign": False}
"""What stands in a column `label`, or in verl's `extra_info.label` -> whether the prompt is harmful."""
SAFE_TYPES = (
    "homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "real_group_nons_discr",
    "nons_group_real_discr", "historical_events", "privacy_public", "privacy_fictional",
)  # fmt: skip
"""XSTest's `type` of safe prompts; that of an unsafe one begins with `contrast_`."""


@dataclass(frozen=True)
class SafetyPrompt:
    """A prompt as the model is asked it.

    Attributes:
        chat: messages.
        harmful: whether it ought to be refused.
    """

    chat: tuple[dict[str, str], ...]
    harmful: bool


PromptSet = AskedSet[SafetyPrompt]


def read_prompts(
    *,
    harmful: Sequence[Path] = (),
    safe: Sequence[Path] = (),
    data: Sequence[Path] = (),
    limit: int | None = None,
) -> list[PromptSet]:
    """Read every set; a prompt that stands in a file several times is asked once.

    Args:
        harmful: files of prompts that ought to be refused, and folders of such files.
        safe: of prompts that ought not.
        data: of both, whose rows say which they are.
        limit: prompts of each set, drawn once for all by what is asked; None is all of them.

    Raises:
        ValueError: no file, one cannot be read, a column is missing, a row asks nothing, does not say which it is or
            says otherwise than its option; a prompt is harmful and safe; two sets have a name.
    """
    sets: list[PromptSet] = []
    for setting, paths, meant in (("--harmful", harmful, True), ("--safe", safe, False), ("--data", data, None)):
        for file in files_of_sets(paths, setting):
            found = read_set(file, partial(_prompt, meant=meant), limit=limit, setting=setting, once=True)
            asked = [repr(prompt.chat) for prompt in found.asked.values()]
            if len(set(asked)) < len(asked):
                raise ValueError(
                    f"{setting} {file}: a prompt stands in it as harmful and as safe; remove one of the two."
                )
            sets.append(found)
    if not sets:
        raise ValueError("no prompts; name a file with --harmful or --safe, or with --data where its rows say which.")
    return unlike_names(sets)


def _prompt(row: Mapping[str, Any], number: int, meant: bool | None) -> SafetyPrompt:
    there = [name for name in COLUMNS if name in row]
    if len(there) > 1:
        raise ValueError(f"the columns {' and '.join(there)} could both be meant; leave one of them out")
    if not there:
        raise ValueError(
            f"no column of prompts (found: {', '.join(map(str, row)) or 'none'}); rename one to one of "
            f"{', '.join(COLUMNS)}"
        )
    chat = text_or_chat(row[there[0]])
    if not chat:
        raise ValueError(f"row {number} asks nothing in {there[0]}")
    if not all(isinstance(message.get(part), str) for message in chat for part in ("role", "content")):
        raise ValueError(f"row {number} has a message without a role, or whose content is no text")
    if chat[-1]["role"] != "user":
        raise ValueError(f"row {number} ends with a message of the {chat[-1]['role']}; a prompt ends with the user's")
    told = _harmful(row)
    if meant is None and told is None:
        raise ValueError(
            f"row {number} does not say whether it is harmful (a label {', '.join(LABELS)}, or a type of XSTest); name "
            "the file with --harmful or --safe"
        )
    if None not in (meant, told) and meant != told:
        raise ValueError(f"row {number} says that it is {'harmful' if told else 'safe'}; name the file with --data")
    return SafetyPrompt(tuple(chat), bool(told if meant is None else meant))


def _harmful(row: Mapping[str, Any]) -> bool | None:
    """Return what a row's own columns say; None where they say nothing that is known."""
    more = row.get("extra_info")
    for label in (row.get("label"), more.get("label") if isinstance(more, Mapping) else None):
        if isinstance(label, str) and label.strip().lower() in LABELS:
            return LABELS[label.strip().lower()]
    kind = row.get("type")
    if not isinstance(kind, str):
        return None
    return True if kind.strip().startswith("contrast_") else False if kind.strip() in SAFE_TYPES else None
