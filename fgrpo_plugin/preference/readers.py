"""One reader for each format of preference data: from an example's columns to a prompt and labelled responses.

| format | columns |
| --- | --- |
| canonical | what `fgrpo prefs convert` writes: `prompt`, `response`, `desirable`, `pair`, `source` |
| paired | `prompt`, `chosen`, `rejected`: text, messages, whole conversations, or lists of several responses |
| paired_transcripts | `chosen`, `rejected`: conversations that differ in the last response, or HH-RLHF's text |
| paired_conversations | `conversations` or `messages`, `chosen`, `rejected` (LLaMA-Factory) |
| rejected_conversation | `messages` that end with the chosen response, and `rejected_response` (ms-swift) |
| preferred_output | `input` with `messages`, `preferred_output`, `non_preferred_output` (OpenAI) |
| response_j_k | `question` or `prompt`, `response_j`, `response_k`; j is the chosen one (stack-exchange-paired) |
| two_responses | a prompt, `response_0` and `response_1` (or 1/2, a/b, ...), and a column that names the chosen one |
| two_conversations | `conversation_a`, `conversation_b`, and a column that names the chosen one (Chatbot Arena) |
| unpaired | `prompt`, `completion` or `response`, and `label` or `desirable` (true, false, 1, 0) |
| unpaired_conversations | the same without `prompt`: conversations in `completion`, `messages` or `conversations` |
| scored | `prompt`, `responses` or `completions`, `scores` (or `ranks`): above the mean is desirable, below it is not |
| rated | `prompt` or `instruction`, and a list of responses that have a score, a rating or a rank each |
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fgrpo_plugin.preference.messages import (
    BadRow,
    Message,
    Notes,
    answered,
    is_list,
    note_key,
    prompt_of,
    whole_characters,
)

Sides = tuple[list[Message], list[tuple[str, bool]]]
Values = Mapping[str, Any]
_ANSWER_WORDS = "(?:model|response|answer|output|assistant|completion|conversation|option|text|candidate)"


@dataclass(frozen=True)
class Format:
    """A way to write preference data.

    Attributes:
        name: as in the module's table.
        columns: for each thing that it needs, the names that it may have; one of them must be there.
        read: (names of the columns, example, notes) -> (prompt, [(response, desirable), ...]); raises BadRow.
        paired: whether one desirable and one undesirable response make a pair.
        without: columns that rule it out.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Sequence[str], Values, Notes], Sides]
    paired: bool
    without: tuple[str, ...] = ()


def _paired(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    prompt, chosen, rejected = names
    return _two_sides(prompt_of(prompt, example[prompt], notes), (chosen, rejected), example, notes)


def _paired_transcripts(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    return _two_sides(None, names, example, notes)


def _rejected_conversation(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    conversation, rejected = names
    prompt, chosen = answered(None, conversation, example[conversation], notes)
    asked, worse = answered(prompt, rejected, example[rejected], notes)
    return _shared_prompt([(prompt, chosen, True), (asked, worse, False)], names)


def _preferred_output(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    given = example[names[0]]
    if not isinstance(given, Mapping):
        raise BadRow(f"'{names[0]}' must be an object with 'messages'", given)
    for key, value in given.items():
        if key != "messages":  # whatever else the request held
            note_key(names[0], key, value, notes, lambda key: True)
    return _two_sides(prompt_of(f"{names[0]}.messages", given.get("messages"), notes), names[1:], example, notes)


def _two_sides(prompt: list[Message] | None, names: Sequence[str], example: Values, notes: Notes) -> Sides:
    """Responses of two columns, the chosen one first; a column may hold a list of several."""
    found = []
    for column, desirable in zip(names, (True, False), strict=True):
        value = example[column]
        several = is_list(value) and len(value) > 0 and all(isinstance(part, str) for part in value)
        for part in value if several else [value]:
            found.append((*answered(prompt, column, part, notes), desirable))
    return _shared_prompt(found, names)


def _shared_prompt(found: list[tuple[list[Message], str, bool]], names: Sequence[str]) -> Sides:
    prompt = found[0][0]
    if any(_stripped(other) != _stripped(prompt) for other, _, _ in found):
        columns = " and ".join(f"'{name}'" for name in names)
        raise BadRow(f"{columns} differ before their last responses, so they share no prompt")
    return prompt, [(answer, desirable) for _, answer, desirable in found]


def _stripped(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"].strip()) for message in messages]


def _two_responses(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    *asked, first, second, choice = names
    prompt = prompt_of(asked[0], example[asked[0]], notes) if asked else None  # else the conversations hold it
    better = _choice(choice, example, first, second)
    both = _two_sides(prompt, (first, second) if better != second else (second, first), example, notes)
    if better is None:
        notes.ties += 1
        return both[0], []
    return both


def _choice(column: str, example: Values, first: str, second: str) -> str | None:
    """Return which of two columns a column names, None for a tie."""
    value = example[column]
    if value is None:
        raise BadRow(f"'{column}' is missing")
    said = str(value).strip().lower()
    if re.match(r"(tie\b|tied|both|neither|$)", said):
        return None
    number = number_of(value)
    ends = {name: re.split(r"[_\W]", re.sub(r"(\d+)$", r"_\1", name.lower()))[-1] for name in (first, second)}
    if column == "preference_strength" or (column, first) == ("overall_preference", "response1"):
        if number is None:
            raise BadRow(f"'{column}' is not a number", value)
        return None if number == 0 else first if number < 0 else second  # below 0: the first one, by so much
    if column == "overall_preference":
        raise BadRow(
            f"'{column}' may be a strength, below 0 for '{first}', or name a response; say which it is with "
            f"{{preference_strength: {column}}} or {{preferred: {column}}}",
            value,
        )
    if (column, first) == ("labels", "human_ref_A") and number in (0, 1):  # SHP: 1 where A is preferred
        return first if number else second
    models = {name: example.get(f"model_{end}") for name, end in ends.items()}
    if value in models.values():  # the name of the model that won
        won = [name for name, model in models.items() if model == value]
        if len(won) == 1:
            return won[0]
        raise BadRow(f"'{column}' is the model of both responses", value)
    said = str(int(number)) if number is not None and number == int(number) else said
    for name, end in ends.items():
        if said in (name.lower(), end) or re.fullmatch(rf"{_ANSWER_WORDS}[ _-]?{re.escape(end)}", said):
            return name
    raise BadRow(f"'{column}' names neither '{first}' nor '{second}'", value)


def _canonical(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    prompt, response, label = names[:3]
    if not isinstance(example[response], str):
        raise BadRow(f"'{response}' is not text", example[response])
    answer = whole_characters(response, example[response])
    return prompt_of(prompt, example[prompt], notes), [(answer, label_of(label, example[label]))]


def _unpaired(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    prompt, response, label = names
    asked, answer = answered(prompt_of(prompt, example[prompt], notes), response, example[response], notes)
    return asked, [(answer, label_of(label, example[label]))]


def _unpaired_conversations(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    conversation, label = names
    asked, answer = answered(None, conversation, example[conversation], notes)
    return asked, [(answer, label_of(label, example[label]))]


def _scored(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    prompt, responses, scores = names
    answers, numbers = example[responses], example[scores]
    if not is_list(answers) or not is_list(numbers) or len(answers) != len(numbers):
        raise BadRow(f"'{responses}' and '{scores}' must be lists of the same length")
    sign = -1 if scores in RANKS else 1
    found = [(answer, sign * _score(scores, number)) for answer, number in zip(answers, numbers, strict=True)]
    return _about_the_mean(prompt_of(prompt, example[prompt], notes), responses, found, notes)


def _rated(names: Sequence[str], example: Values, notes: Notes) -> Sides:
    prompt, answers = names
    value = example[answers]
    if not is_list(value) or not all(isinstance(entry, Mapping) for entry in value):
        raise BadRow(f"'{answers}' must be a list of objects, each a response and its score", value)
    found = []
    for entry in value:
        text, score = (_key(entry, keys, answers) for keys in (ANSWER_KEYS, SCORE_KEYS))
        for key, rest in entry.items():
            if key not in (text, score):
                note_key(f"{answers}[]", key, rest, notes)
        number = _score(f"{answers}[].{score}", entry[score])
        found.append((entry[text], -number if score == "rank" else number))
    return _about_the_mean(prompt_of(prompt, example[prompt], notes), answers, found, notes)


def _key(entry: Values, keys: Sequence[str], column: str) -> str:
    given = [key for key in keys if entry.get(key) is not None]
    if len(given) != 1:
        what = f"has both {' and '.join(given)}" if given else f"lacks one of {', '.join(keys)}"
        raise BadRow(f"a response in '{column}' {what}", None if given else dict(entry))
    return given[0]


def _about_the_mean(prompt: list[Message], column: str, found: list[tuple[Any, float]], notes: Notes) -> Sides:
    scores = [score for _, score in found]
    if max(scores, default=0) == min(scores, default=0):
        raise BadRow("all scores are equal, so that none is above or below their mean")
    mean = math.fsum(score / len(scores) for score in scores)
    rounding = 1e-12 * max(abs(score) for score in scores)
    sides = [
        (*answered(prompt, column, answer, notes), score > mean)
        for answer, score in found
        if abs(score - mean) > rounding
    ]
    notes.at_mean += len(found) - len(sides)
    return _shared_prompt(sides, [column])


def label_of(column: str, value: Any) -> bool:
    """A label, which may be a number or text.

    Raises:
        BadRow: it is neither true nor false.
    """
    said = str(value).strip().lower() if isinstance(value, str | bool | int | float | Decimal) else None
    if said in ("true", "1", "1.0"):
        return True
    if said in ("false", "0", "0.0"):
        return False
    raise BadRow(f"'{column}' is a label other than true, false, 1 and 0", value)


def number_of(value: Any) -> float | None:
    """A finite number, also where it is written as text, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _score(column: str, value: Any) -> float:
    number = number_of(value)
    if number is None:
        missing = value is None or (isinstance(value, str) and not value.strip())
        raise BadRow(f"a score in '{column}' is {'missing' if missing else 'not a finite number'}", value)
    return number


RESPONSE = ("completion", "response")
LABEL = ("label", "desirable", "kto_tag")
RESPONSES = ("responses", "completions", "generations")
SCORES = ("scores", "ratings", "rewards", "ranks", "rank", "ranking")
RANKS = ("ranks", "rank", "ranking")  # the smallest is the best
SYSTEM = ("system", "system_prompt")
CONVERSATIONS = ("conversations", "messages")
ANSWER_KEYS = ("response", "answer", "text", "content", "completion")
SCORE_KEYS = ("overall_score", "score", "pm_score", "rating", "rank")
CHOICES = (
    "preferred",
    "preference",
    "preference_strength",
    "overall_preference",
    "better_response_id",
    "safer_response_id",
    "winner",
    "labels",
    "label",
)
QUESTIONS = ("prompt", "question", "instruction", "context", "history", "input")
TWO_RESPONSES = (
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("response_A", "response_B"),
    ("answer_0", "answer_1"),
    ("output_1", "output_2"),
    ("completion_a", "completion_b"),
    ("human_ref_A", "human_ref_B"),
)
_SIDES: tuple[tuple[str, ...], ...] = (("chosen",), ("rejected",))
FORMATS = (
    Format("canonical", (("prompt",), ("response",), ("desirable",), ("pair",), ("source",)), _canonical, paired=False),
    Format("paired", (("prompt",), *_SIDES), _paired, paired=True),
    Format("paired_conversations", (CONVERSATIONS, *_SIDES), _paired, paired=True, without=("prompt",)),
    Format("paired_transcripts", _SIDES, _paired_transcripts, paired=True),
    Format(
        "rejected_conversation",
        (CONVERSATIONS, ("rejected_response", "rejected_messages")),
        _rejected_conversation,
        paired=True,
        without=("prompt", "chosen"),
    ),
    Format(
        "preferred_output",
        (("input",), ("preferred_output",), ("non_preferred_output",)),
        _preferred_output,
        paired=True,
    ),
    Format("response_j_k", (("prompt", "question"), ("response_j",), ("response_k",)), _paired, paired=True),
    *(
        Format("two_responses", (QUESTIONS, (first,), (second,), CHOICES), _two_responses, paired=True)
        for first, second in TWO_RESPONSES
    ),
    Format("two_conversations", (("conversation_a",), ("conversation_b",), CHOICES), _two_responses, paired=True),
    Format("unpaired", (("prompt",), RESPONSE, LABEL), _unpaired, paired=False),
    Format(
        "unpaired_conversations",
        ((*RESPONSE, *CONVERSATIONS), LABEL),
        _unpaired_conversations,
        paired=False,
        without=("prompt",),
    ),
    Format("scored", (("prompt", "instruction"), RESPONSES, SCORES), _scored, paired=False),
    Format("rated", (("prompt", "instruction"), (*RESPONSES, "answers")), _rated, paired=False, without=SCORES),
)
READABLE = tuple(dict.fromkeys([name for format in FORMATS for names in format.columns for name in names] + [*SYSTEM]))
"""Every column that some format reads."""
