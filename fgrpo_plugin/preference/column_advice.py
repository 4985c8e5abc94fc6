"""What to say of columns that fit no format, or several: what is missing, where it may stand, and the setting."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fgrpo_plugin.preference.messages import tells_about
from fgrpo_plugin.preference.readers import FORMATS, QUESTIONS, Format, number_of

SETTING = "data.preference.columns"
# Names under which a column that is missing often stands; the first that is there is proposed.
_LIKELY = {
    "prompt": [
        "question",
        "instruction",
        "query",
        "problem",
        "input",
        "inputs",
        "context",
        "text",
        "user",
        "post",
        "title",
    ],
    "chosen": [
        "chosen_response",
        "preferred",
        "preferred_response",
        "accepted",
        "better",
        "positive",
        "winner",
        "answer",
        "good",
    ],
    "rejected": ["rejected_response", "dispreferred", "non_preferred", "worse", "negative", "loser", "bad"],
    "completion": ["answer", "output", "text", "response_text", "generation", "content"],
    "label": ["is_preferred", "is_desirable", "preferred", "liked", "thumbs_up", "feedback"],
    "responses": ["answers", "outputs", "candidates"],
    "scores": ["rewards", "rating", "score", "ranks"],
}


def either(where: str, both: Sequence[str], columns: Sequence[str]) -> str:
    """Say that two columns could both be meant."""
    if set(both) <= set(QUESTIONS):
        joined = setting_of({"prompt": list(both)})
        return (
            f"{where}: the columns {' and '.join(both)} could both be the prompt (found: {', '.join(columns)}); join "
            f"them, {joined}, or leave one out, {setting_of({both[1]: 'null'})}."
        )
    return (
        f"{where}: the columns {' and '.join(both)} could both be meant (found: {', '.join(columns)}); choose one: "
        f"{setting_of({both[0]: both[1]})} reads {both[1]}, {setting_of({both[0]: both[0]})} reads {both[0]}."
    )


def nothing_fits(where: str, seen: Sequence[str], columns: Sequence[str], first: Mapping[str, Any]) -> str:
    """The format that lacks least, the columns that it lacks, and where they may stand."""
    found = ", ".join(columns) or "none"
    scored = "write one row for each prompt: prompt, responses (a list), scores (a list"
    if "message_tree_id" in seen:
        return f"{where}: trees of messages (columns {found}) are not read; {scored}, minus the rank of each reply)."

    def rank(format: Format) -> tuple[float, int]:
        """The share that can be neither found nor guessed; of formats of which all can, the one that reads most."""
        proposed = proposed_columns(format, seen)
        unknown = sum(column is None for column in proposed.values())
        return unknown / len(format.columns), len(proposed) if unknown else -len(format.columns)

    candidates = [
        format for format in FORMATS if not set(format.without) & set(seen) and proposed_columns(format, seen)
    ]
    nearest = min(candidates, key=rank)
    proposed = proposed_columns(nearest, seen)
    lacks = list(proposed)
    needs = ", ".join("/".join(names) for names in nearest.columns)
    text = f"{where}: no preference format has the columns {found}"
    if len(lacks) == len(nearest.columns) and None in proposed.values():
        shown = [format for format in FORMATS if format.name in ("paired", "paired_transcripts", "unpaired", "scored")]
        known = "; ".join(f"{f.name}: {', '.join('/'.join(names) for names in f.columns)}" for f in shown)
        name = setting_of({"prompt": "...", "chosen": "...", "rejected": "..."})
        return f"{text}; rename them, or name them with {name} (among others are read {known})."
    ratings = [name for name in seen if number_of(first.get(name)) is not None]
    if nearest.name == "unpaired" and lacks == ["label"] and ratings:
        return (
            f"{text}: no label says which responses are preferred, and ratings ({', '.join(ratings)}) of single "
            f"responses have no mean to stand above; {scored}, of one of the ratings)."
        )
    setting = setting_of({name: column or "..." for name, column in proposed.items()})
    return f"{text}: {nearest.name} ({needs}) lacks {' and '.join(lacks)}; name it with {setting}."


def proposed_columns(format: Format, columns: Sequence[str]) -> dict[str, str | None]:
    """Return what a format lacks -> the column, each but once, where it may stand, or None."""
    free = [column for column in columns if not any(column in names for names in format.columns)]
    found: dict[str, str | None] = {}
    for names in format.columns:
        if set(names) & set(columns):
            continue
        words = [names[0], *_LIKELY.get(names[0], [])]
        texts = [column for column in free if not tells_about(column)]
        matches = [column for word in words for column in texts if column.lower() == word]
        matches += [column for word in words for column in texts if word in re.split(r"[\W_]", column.lower())]
        found[names[0]] = next(iter(matches), None)
        free = [column for column in free if column != found[names[0]]]
    return found


def setting_of(columns: Mapping[str, Any]) -> str:
    """The setting and the option that name these columns."""
    shown = ", ".join(f"{name}: {_shown(given)}" for name, given in columns.items())
    options = " ".join(f"--column {name}={_shown(given, '+')}" for name, given in columns.items())
    return f"{SETTING}={{{shown}}}, {options}"


def _shown(given: Any, joint: str = ", ") -> str:
    if isinstance(given, str):
        return given
    return joint.join(given) if joint == "+" else f"[{joint.join(given)}]"
