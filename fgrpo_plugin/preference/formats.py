"""The formats of preference data, told apart by their columns, and what an example becomes: rows on two sides.

| format | columns |
| --- | --- |
| paired | `prompt` (text or messages), `chosen`, `rejected` (text or assistant messages) |
| paired_transcripts | `chosen`, `rejected`: conversations that differ in the last answer (messages, or HH-RLHF text) |
| unpaired | `prompt`, `completion` or `response`, and `label` or `desirable` (true, false, 1, 0) |
| scored | `prompt`, `responses` or `completions`, `scores`: above the mean is desirable, below it is not |
| canonical | what `fgrpo prefs convert` writes: `prompt`, `response`, `desirable`, `pair`, `source` |
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
Example = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_RESPONSE = ("completion", "response")
_LABEL = ("label", "desirable")
_RESPONSES = ("responses", "completions")


@dataclass(frozen=True)
class LabelledResponse:
    """One response on one side.

    Attributes:
        prompt: messages with `role` and `content`; the last one is not the assistant's.
        response: the assistant's answer, as text.
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


class BadRow(ValueError):
    """An example that cannot be used; the text is the reason, without its place."""


@dataclass(frozen=True)
class Format:
    """A way to write preference data.

    Attributes:
        name: as in the module's table.
        columns: for each thing that it needs, the names under which it is looked for.
        read: example -> (prompt, [(response, desirable), ...]); raises BadRow.
        paired: whether the rows of one example belong together.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Example], tuple[list[Message], list[tuple[str, bool]]]]
    paired: bool


def detect(columns: Sequence[str], where: str) -> Format:
    """The format of a file with these columns.

    Raises:
        ValueError: none or several of the formats fit; the message lists what was found and what each one needs.
    """
    fitting = [format for format in FORMATS if all(set(names) & set(columns) for names in format.columns)]
    if {"canonical", "unpaired"} == {format.name for format in fitting}:
        fitting = fitting[:1]  # the canonical columns are among the unpaired ones, and more
    if {"paired", "paired_transcripts"} == {format.name for format in fitting}:
        fitting = fitting[:1]  # with a prompt of its own
    if len(fitting) == 1:
        return fitting[0]
    needs = "; ".join(f"{f.name}: {', '.join('/'.join(names) for names in f.columns)}" for f in FORMATS)
    found = ", ".join(columns)
    if not fitting:
        raise ValueError(f"{where}: no preference format has the columns {found}; rename them to fit one of: {needs}.")
    names = " and ".join(format.name for format in fitting)
    raise ValueError(f"{where}: the columns {found} fit {names}; drop those that are not meant (formats: {needs}).")


def rows_of(example: Example, format: Format, where: str) -> list[LabelledResponse]:
    """The rows of one example.

    Args:
        example: column -> value.
        format: from `detect`.
        where: file and row, kept as `source`, and as `pair` where the format is paired.

    Raises:
        BadRow: with the reason.
    """
    prompt, sides = format.read(example)
    if not any(message["content"].strip() for message in prompt):
        raise BadRow("the prompt is empty")
    if prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with an answer of the assistant")
    for response, _ in sides:
        if not response.strip():
            raise BadRow("a response is empty")
    if format.paired and len({response for response, _ in sides}) < len(sides):
        raise BadRow("chosen and rejected are the same")
    frozen = tuple((message["role"], message["content"]) for message in prompt)
    pair, source = (example["pair"], example["source"]) if format.name == "canonical" else (where, where)
    pair = pair if format.paired or format.name == "canonical" else None
    return [LabelledResponse(frozen, response, desirable, pair, source) for response, desirable in sides]


def _paired(example: Example) -> tuple[list[Message], list[tuple[str, bool]]]:
    prompt = _prompt(example["prompt"])
    sides = []
    for column, desirable in (("chosen", True), ("rejected", False)):
        value = example[column]
        if not isinstance(value, str):
            messages = _messages(value, column)
            if messages[: len(prompt)] == prompt:  # the whole conversation beside its prompt, as some files have it
                messages = messages[len(prompt) :]
            if len(messages) != 1 or messages[0]["role"] != "assistant":
                raise BadRow(f"'{column}' must be one answer of the assistant, after the prompt")
            value = messages[0]["content"]
        sides.append((value, desirable))
    return prompt, sides


def _paired_transcripts(example: Example) -> tuple[list[Message], list[tuple[str, bool]]]:
    conversations = [_transcript(example[column], column) for column in ("chosen", "rejected")]
    for column, messages in zip(("chosen", "rejected"), conversations, strict=True):
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"'{column}' does not end with an answer of the assistant")
    chosen, rejected = conversations
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("'chosen' and 'rejected' differ before their last answers, so they share no prompt")
    return chosen[:-1], [(chosen[-1]["content"], True), (rejected[-1]["content"], False)]


def _unpaired(example: Example) -> tuple[list[Message], list[tuple[str, bool]]]:
    prompt = _prompt(example["prompt"])
    return prompt, [(_answer(_first(example, _RESPONSE), prompt), _label(_first(example, _LABEL)))]


def _scored(example: Example) -> tuple[list[Message], list[tuple[str, bool]]]:
    prompt, responses, scores = _prompt(example["prompt"]), _first(example, _RESPONSES), example["scores"]
    if _is_text_or_single(responses) or _is_text_or_single(scores) or len(responses) != len(scores):
        raise BadRow("responses and scores must be lists of the same length")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise BadRow("a score is not a finite number")
    if max(scores, default=0) == min(scores, default=0):
        raise BadRow("all scores are equal, so that none is above or below their mean")
    mean = math.fsum(scores) / len(scores)
    rounding = 1e-12 * max(abs(score) for score in scores)
    sides = [
        (_answer(response, prompt), score > mean)
        for response, score in zip(responses, scores, strict=True)
        if abs(score - mean) > rounding
    ]
    return prompt, sides


def _prompt(value: Any) -> list[Message]:
    if isinstance(value, str):
        if not value.strip():
            raise BadRow("the prompt is empty")
        return [{"role": "user", "content": value}]
    return _messages(value, "prompt")


def _answer(value: Any, prompt: list[Message]) -> str:
    if isinstance(value, str):
        return value
    messages = _messages(value, "response")
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow("a response must be text, or one message of the assistant")
    return messages[0]["content"]


def _messages(value: Any, column: str) -> list[Message]:
    if _is_text_or_single(value) or not all(isinstance(message, Mapping) for message in value):
        raise BadRow(f"'{column}' must be text or a list of messages, not {value!r:.60}")
    if not len(value):
        raise BadRow(f"'{column}' is empty")
    for message in value:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadRow(f"'{column}' has the role {role!r}; known are {', '.join(ROLES)}")
        if message.get("tool_calls"):
            raise BadRow(f"'{column}' has a message with tool calls, which are not supported")
        if not isinstance(content, str):
            raise BadRow(f"'{column}' has a message whose content is not text: {content!r:.60}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _transcript(value: Any, column: str) -> list[Message]:
    """Messages, or HH-RLHF's text: turns that begin with "Human:" and "Assistant:" after an empty line."""
    if not isinstance(value, str):
        return _messages(value, column)
    parts = _TURN.split(value if value.startswith("\n\n") else "\n\n" + value)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(f"'{column}' is text without the turns 'Human:' and 'Assistant:', so its prompt has no end")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": text.strip()}
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _label(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise BadRow(f"the label {value!r} is not true, false, 1 or 0")


def _first(example: Example, names: Sequence[str]) -> Any:
    return next(example[name] for name in names if name in example)


def _is_text_or_single(value: Any) -> bool:
    return isinstance(value, str | Mapping) or not hasattr(value, "__len__")


FORMATS = (
    Format("canonical", (("prompt",), ("response",), ("desirable",), ("pair",), ("source",)), _unpaired, paired=False),
    Format("paired", (("prompt",), ("chosen",), ("rejected",)), _paired, paired=True),
    Format("paired_transcripts", (("chosen",), ("rejected",)), _paired_transcripts, paired=True),
    Format("unpaired", (("prompt",), _RESPONSE, _LABEL), _unpaired, paired=False),
    Format("scored", (("prompt",), _RESPONSES, ("scores",)), _scored, paired=False),
)
