"""Detects the format of preference data by its columns, and makes desirable and undesirable rows of an example.

readers.py has the formats. A format reads exactly its own columns. Two columns that could both be meant are refused by
name; so is a column whose text conditions the responses and stands nowhere in what is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo_plugin.preference.column_advice import SETTING, either, nothing_fits, setting_of
from fgrpo_plugin.preference.messages import (
    BadRow,
    Message,
    Notes,
    conditions_answer,
    is_transcript,
    texts,
    whole_characters,
)
from fgrpo_plugin.preference.readers import (
    CHOICES,
    CONVERSATIONS,
    FORMATS,
    LABEL,
    QUESTIONS,
    RESPONSE,
    RESPONSES,
    SCORES,
    SYSTEM,
    Format,
)

Columns = Mapping[str, str | Sequence[str] | None]
LONG_ENOUGH = 40  # characters: a shorter text may stand in a prompt by chance
_ALIKE = (RESPONSE, LABEL, RESPONSES, SCORES, SYSTEM)
_CHOICES = (*_ALIKE, CHOICES, CONVERSATIONS)


@dataclass(frozen=True)
class LabelledResponse:
    """One response, desirable or undesirable.

    Attributes:
        prompt: messages with `role` and `content`; the last one is not the assistant's.
        response: the assistant's response, as text.
        desirable: D+ or D-.
        pair: the same for the rows of one pair, and for no others; None where the data are unpaired.
        source: file and row that it comes from.
    """

    prompt: tuple[tuple[str, str], ...]
    response: str
    desirable: bool
    pair: str | None
    source: str

    @property
    def messages(self) -> list[Message]:
        """The prompt as a chat template takes it."""
        return [{"role": role, "content": content} for role, content in self.prompt]


@dataclass(frozen=True)
class Layout:
    """A format with the columns of a file.

    Attributes:
        format: which one.
        names: the file's column for each thing that the format needs.
        system: the column that holds a system message, or None.
        ignored: columns that are not read.
        conditions: those of them whose text would condition the responses.
        prompt: the file's columns of which the prompt is made; none where conversations hold it.
    """

    format: Format
    names: tuple[str, ...]
    system: str | None
    ignored: tuple[str, ...]
    conditions: tuple[str, ...]
    prompt: tuple[str, ...]


def renamed(example: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """An example with the user's names of columns put in place: what is read -> column, parts joined by a line's end.

    Raises:
        BadRow: a column that is to be read is not there.
    """
    if not columns:
        return dict(example)
    moved: dict[str, Any] = {}
    used: set[str] = set()
    for name, given in columns.items():
        if given is None or (_is_choice(name, given) and given in example):
            continue
        parts = [given] if isinstance(given, str) else list(given)
        used |= set(parts)
        if len(parts) == 1:
            moved[name] = _at(example, parts[0])
            continue
        values = [example.get(part) if "." not in part else _at(example, part) for part in parts]
        if not any(part in example or "." in part for part in parts):
            raise BadRow(f"{SETTING}: there is no column {' or '.join(map(repr, parts))}")
        if all(value is None or isinstance(value, str) for value in values):
            moved[name] = "\n".join(value for value in values if value and value.strip())
        else:
            raise BadRow(f"{SETTING}: {name} is joined of columns that are not all text")
    # A column of the file under the name that another one now has keeps its value under a name of its own, unread.
    kept = {
        (f"{name} (of the file)" if name in moved else name): value
        for name, value in example.items()
        if name not in used
    }
    return {**kept, **moved}


def _is_choice(name: str, given: Any) -> bool:
    """Return whether both are names of one thing, so that one of them is chosen and nothing is moved."""
    return isinstance(given, str) and any(name in group and given in group for group in (*_ALIKE, CONVERSATIONS))


def _at(example: Mapping[str, Any], place: str) -> Any:
    if place in example:
        return example[place]
    value: Any = example
    for key in place.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise BadRow(f"{SETTING}: there is no column {place!r}")
        value = value[key]
    return value


def detect(columns: Sequence[str], where: str, mapping: Columns | None = None, first: Any = None) -> Layout:
    """The format of a file with these columns.

    Args:
        columns: after `renamed`.
        where: the file, for reasons.
        mapping: the user's names; those that are null are columns not to be read.
        first: an example, where its values tell formats apart that have the same columns.

    Raises:
        ValueError: none or several of the formats fit, or two columns could both be meant; the message names what was
            found, what is missing and the setting that helps.
    """
    mapping = mapping or {}
    left_out = {name for name, given in mapping.items() if given is None}
    chosen_for = {given if _is_choice(name, given) else name for name, given in mapping.items() if given is not None}
    passed_over = {name for group in _CHOICES if chosen_for & set(group) for name in group} - chosen_for
    displaced = {name for name in columns if name.endswith(" (of the file)")}
    seen = [name for name in columns if name not in left_out | passed_over | displaced]
    for group in _ALIKE:
        if len(both := [name for name in group if name in seen]) > 1:
            raise ValueError(either(where, both, columns))
    fitting = [format for format in FORMATS if _fits(format, seen)]
    if (
        first is not None
        and isinstance(first.get("chosen"), str)
        and first["chosen"].strip()
        and not is_transcript(first["chosen"])
    ):
        fitting = [format for format in fitting if format.name != "paired_transcripts"]
    used = {format: {name for names in format.columns for name in names if name in seen} for format in fitting}
    # What reads more of the columns is meant: a prompt of its own beside two responses, the canonical columns.
    fitting = [format for format in fitting if not any(used[format] < used[other] for other in fitting)]
    if not fitting:
        raise ValueError(nothing_fits(where, seen, columns, first or {}))
    found = ", ".join(columns)
    if len(fitting) > 1:
        fit = " and ".join(format.name for format in fitting)
        only = sorted(used[fitting[-1]] - used[fitting[0]])
        raise ValueError(
            f"{where}: the columns {found} fit {fit}; leave out those that are not meant, for example "
            f"{setting_of(dict.fromkeys(only, 'null'))}."
        )
    (format,) = fitting
    for names in format.columns:
        if len(both := [name for name in names if name in seen]) > 1:
            raise ValueError(either(where, both, columns))
    chosen = tuple(next(name for name in names if name in seen) for names in format.columns)
    system = next((name for name in SYSTEM if name in seen), None)
    if format.name == "canonical":
        system = None
    ignored = tuple(name for name in columns if name not in chosen and name != system)
    conditions = tuple(
        name for name in ignored if name not in left_out | passed_over | displaced and conditions_answer(name)
    )
    asked = mapping.get(chosen[0]) or chosen[0] if set(QUESTIONS) & set(format.columns[0]) else ()
    prompt = (asked,) if isinstance(asked, str) else tuple(asked)
    return Layout(format, chosen, system, ignored, conditions, prompt)


def rows_of(
    example: Mapping[str, Any], layout: Layout, where: str, notes: Notes | None = None
) -> list[LabelledResponse]:
    """The rows of one example.

    Args:
        example: column -> value, after `renamed`.
        layout: from `detect`.
        where: file and row, kept as `source`, and as `pair` where one response is desirable and one is not.
        notes: counts what is left out; None counts nothing.

    Raises:
        BadRow: with the reason.
    """
    notes = notes or Notes()
    for name in layout.names:
        if name not in example and name not in ("pair", "source"):
            raise BadRow(f"'{name}' is missing")
    prompt, sides = layout.format.read(layout.names, example, notes)
    if layout.system is not None:
        prompt = _with_system(prompt, layout.system, example.get(layout.system))
    for response, _ in sides:
        if not response.strip():
            raise BadRow("a response is empty")
    _check_sides(sides, layout.format)
    _check_conditions(example, layout, prompt, sides)
    frozen = tuple((message["role"], message["content"]) for message in prompt)
    pair, source = None, where
    if layout.format.name == "canonical":
        pair, source = _name("pair", example.get("pair")), _name("source", example.get("source")) or where
    elif layout.format.paired and len(sides) == 2:
        pair = where
    return [LabelledResponse(frozen, response, desirable, pair, source) for response, desirable in sides]


def _check_sides(sides: Iterable[tuple[str, bool]], format: Format) -> None:
    good, bad = ({response for response, side in sides if side is wanted} for wanted in (True, False))
    if format.paired and good & bad:
        raise BadRow("chosen and rejected are the same")


def _with_system(prompt: list[Message], column: str, value: Any) -> list[Message]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return prompt
    if not isinstance(value, str):
        raise BadRow(f"'{column}' is a system message that is not text", value)
    whole_characters(column, value)
    systems = [message["content"] for message in prompt if message["role"] == "system"]
    if systems and [text.strip() for text in systems] != [value.strip()]:
        raise BadRow(f"'{column}' and the prompt have different system messages")
    return prompt if systems else [{"role": "system", "content": value}, *prompt]


def _check_conditions(
    example: Mapping[str, Any], layout: Layout, prompt: list[Message], sides: list[tuple[str, bool]]
) -> None:
    read: set[str] | None = None
    for column in layout.conditions:
        for text in map(_plain, texts(example.get(column))):
            if read is None:
                asked = [message["content"] for message in prompt]
                read = {_plain(part) for part in (*asked, *(answer for answer, _ in sides))}
                whole = _plain("\n".join(asked))
            if text not in read and not (len(text) >= LONG_ENOUGH and text in whole):
                raise BadRow(_not_read(column, example.get(column), layout.prompt), example.get(column))


def _not_read(column: str, value: Any, prompt: tuple[str, ...]) -> str:
    join = ""
    if isinstance(value, str) and prompt:
        first = not {"prefix", "partial", "initial", "step", "steps", "input", "inputs"} & set(
            column.lower().split("_")
        )
        join = f" ({setting_of({'prompt': [column, *prompt] if first else [*prompt, column]})})"
    return (
        f"the column '{column}' conditions the responses and is not read; write it into the prompt{join}, or leave it "
        f"out on purpose ({setting_of({column: 'null'})})"
    )


def _plain(text: str) -> str:
    return " ".join(text.split())


def _name(column: str, value: Any) -> str | None:
    """A name of a pair or a source, which may be a number; an empty one is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return whole_characters(column, str(value))
    raise BadRow(f"'{column}' must be text or a whole number", value)


def _fits(format: Format, columns: Sequence[str]) -> bool:
    return all(set(names) & set(columns) for names in format.columns) and not set(format.without) & set(columns)
