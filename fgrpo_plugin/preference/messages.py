"""Prompts and responses in the ways that files write them -> messages with `role` and `content`.

Messages are `role` and `content`, or `from` and `value`; text is one message of the user, or turns that begin with
"Human:" and "Assistant:" after an empty line, as HH-RLHF has them. Whatever else a message holds is
noted as not read; what would condition the response is refused.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = dict[str, str]

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
OTHER_ROLES |= {"developer": "system"}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_TURN = re.compile(r"(?:\r?\n){2}(Human|Assistant):")
_TURN_ON_A_LINE = re.compile(r"(?:^|\r?\n)(Human|Assistant):")
_ANSWERS_TURN = re.compile(r"\s*Assistant:\s*")
_BEGINS_WITH_TURN = re.compile(r"\s*Human:")
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
# Words of a column's or key's name that tell that the response depends on it; last words that tell that it does not.
# fmt: off
_CONDITIONS = {
    "system", "sys", "persona", "character", "tool", "tools", "function", "functions", "api", "apis", "context",
    "contexts", "history", "conversation", "conversations", "message", "messages", "dialog", "dialogue",
    "dialogues", "turn", "turns", "step", "steps", "prefix", "prefill", "partial", "initial", "previous", "earlier",
    "reasoning", "thinking", "thought", "thoughts", "cot", "scratchpad", "passage", "passages", "document",
    "documents", "doc", "docs", "article", "background", "knowledge", "evidence", "retrieved", "image", "images",
    "video", "videos", "audio", "audios", "picture", "pictures", "attachment", "attachments", "input", "inputs",
    "instruction", "instructions", "question", "query", "schema", "table", "tables", "kwargs", "preamble",
    "demonstrations", "shots", "exemplars", "prompt", "options", "option", "choices", "paragraph", "story",
    "premise", "facts", "snippets", "chunks", "search", "quotes", "hint", "hints", "example", "examples", "few",
    "demonstration", "trajectory", "observation", "memory", "chat", "conv", "profile", "scenario", "constraints",
    "constraint", "guidelines", "constitution", "sysprompt", "systemprompt", "img", "think",
}
_ABOUT = {
    "id", "ids", "uid", "uuid", "hash", "score", "scores", "count", "num", "number", "len", "length", "type", "source",
    "sources", "name", "category", "domain", "model", "models", "date", "time", "timestamp", "version",
    "index", "idx", "lang", "language", "format", "tokens", "label", "labels", "rating", "ratings",
}
# fmt: on


class BadRow(ValueError):
    """An example that cannot be used; the text is the reason, the same for all rows that it holds for.

    Attributes:
        sample: what was found instead, of the row that raised it; None where there is nothing to show.
    """

    def __init__(self, reason: str, *sample: Any):
        super().__init__(reason)
        self.sample = f"{sample[0]!r:.80}" if sample else None


class Notes:
    """What is known of a file while its rows are read.

    Args:
        accepted: names of columns and keys that the user has said are not to be read.

    Attributes:
        unread: keys of messages that were not read, as `column[].key`.
        at_mean: responses that are neither above nor below the mean of their scores.
        ties: examples without a preference.
    """

    def __init__(self, accepted: Sequence[str] = ()):
        self.accepted = frozenset(accepted)
        self.unread: dict[str, None] = {}
        self.at_mean = 0
        self.ties = 0


def conditions_answer(name: str) -> bool:
    """Return whether text under this name would condition a response, as far as a name tells."""
    return not tells_about(name) and not _CONDITIONS.isdisjoint(_words(name))


def tells_about(name: str) -> bool:
    """Return whether a name is of something that is told of a text (its id, model, score, ...), not of a text."""
    words = _words(name)
    return not words or words[-1] in _ABOUT


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def texts(value: Any) -> list[str]:
    """Every text in a value, however deep; what is neither text, number nor empty is shown as text."""
    if value is None or isinstance(value, bool | int | float):
        return []
    if isinstance(value, str):
        return [] if value.strip().lower() in ("", "[]", "{}", "null", "none") else [value]
    if isinstance(value, Mapping):
        return [text for key, part in value.items() if key not in ("role", "from") for text in texts(part)]
    if isinstance(value, bytes) or not hasattr(value, "__iter__"):
        return [repr(value)]
    return [text for part in value for text in texts(part)]


def is_messages(value: Any) -> bool:
    """Return whether it is a message or a list of them."""
    if isinstance(value, Mapping):
        return "role" in value or "from" in value
    return is_list(value) and len(value) > 0 and all(isinstance(part, Mapping) for part in value)


def is_list(value: Any) -> bool:
    """Return whether it is a list of whatever, as JSON and parquet files hold them."""
    return hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)


def is_transcript(value: Any) -> bool:
    """Return whether it is text that begins with the turn "Human:"."""
    return isinstance(value, str) and bool(_BEGINS_WITH_TURN.match(value))


def prompt_of(column: str, value: Any, notes: Notes) -> list[Message]:
    """A prompt as messages; the last one is not the assistant's.

    Raises:
        BadRow: it is empty, of another type, or ends with a response.
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRow("the prompt is empty")
        messages = [{"role": "user", "content": checked_text(column, value)}]
        if is_transcript(value):
            turns = transcript(column, value)
            if turns[-1]["role"] == "assistant" and turns[-1]["content"]:
                raise BadRow(f"'{column}' ends with the beginning of a response", turns[-1]["content"])
            messages = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    else:
        messages = messages_of(column, value, notes)
    if not any(message["content"].strip() for message in messages):
        raise BadRow("the prompt is empty")
    if messages[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with a response of the assistant")
    return messages


def answered(prompt: list[Message] | None, column: str, value: Any, notes: Notes) -> tuple[list[Message], str]:
    """Split what a row holds into the whole prompt and the text of the response to it.

    Args:
        prompt: of the row, or None where the conversation holds it.
        column: where the response stands, for reasons.
        value: text; one message of the assistant; a conversation that ends with it and begins with the prompt, or with
            what stands before the prompt, or with what goes on behind it.
        notes: of the file.

    Raises:
        BadRow: it is none of these.
    """
    if is_transcript(value) and "\nAssistant:" in value:
        messages = transcript(column, value)
    elif isinstance(value, str):
        if prompt is None:
            raise BadRow(f"'{column}' is text without the turns 'Human:' and 'Assistant:', so its prompt has no end")
        text = checked_text(column, value)
        said = _ANSWERS_TURN.match(text)
        return prompt, text[said.end() :].strip() if said else text
    else:
        messages = messages_of(column, value, notes)
    *before, last = messages
    if last["role"] != "assistant":
        raise BadRow(f"'{column}' does not end with a response of the assistant")
    if prompt is None:
        if not before or before[-1]["role"] == "assistant":
            raise BadRow(f"'{column}' holds no prompt before its last response")
        return before, last["content"]
    if not before or before == prompt:
        return prompt, last["content"]
    if _holds(before, prompt):  # with a system message, or earlier turns
        return before, last["content"]
    if before[0]["role"] == "assistant" and before[-1]["role"] != "assistant":  # further turns behind the prompt
        return [*prompt, *before], last["content"]
    raise BadRow(f"'{column}' is a conversation that does not hold the prompt")


def messages_of(column: str, value: Any, notes: Notes) -> list[Message]:
    """Messages as `role` and `content`.

    Raises:
        BadRow: it is no list of messages, or one of them has an unknown role, no text, or keys that condition a
            response.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not is_list(value) or not all(isinstance(message, Mapping) for message in value):
        raise BadRow(f"'{column}' must be text or a list of messages", value)
    if not len(value):
        raise BadRow(f"'{column}' is empty")
    found = []
    for message in value:
        role, content = (_one_of(message, names, column) for names in (_ROLE_KEYS, _CONTENT_KEYS))
        named = role.lower() if isinstance(role, str) else role
        known = OTHER_ROLES.get(named, named) if isinstance(named, str) else None
        if known not in ROLES:
            raise BadRow(f"'{column}' has a role other than {', '.join((*ROLES, *OTHER_ROLES))}", role)
        for key, rest in message.items():
            if key not in (*_ROLE_KEYS, *_CONTENT_KEYS):
                note_key(f"{column}[]", key, rest, notes)
        if not isinstance(content, str):
            raise BadRow(f"'{column}' has a message whose content is not text", content)
        found.append({"role": known, "content": whole_characters(column, content)})
    return found


def note_key(place: str, key: str, value: Any, notes: Notes, conditions: Callable[[str], bool] | None = None) -> None:
    """Note a key that is not read, where it holds something.

    Raises:
        BadRow: it conditions responses, and the user has not said that it is left out on purpose.
    """
    if not texts(value):
        return
    if (conditions or conditions_answer)(key) and key not in notes.accepted:
        raise BadRow(
            f"'{place}' has {key!r}, which conditions responses and is not read; leave it out on purpose with "
            f"data.preference.columns={{{key}: null}}, --column {key}=null",
            value,
        )
    notes.unread[f"{place}.{key}"] = None


def transcript(column: str, text: str) -> list[Message]:
    """Text of turns as messages.

    Raises:
        BadRow: it has no turns.
    """
    text = checked_text(column, text).lstrip()
    # Empty lines part turns; some files have them without, and then a turn on every such line.
    parts = (_TURN if _TURN.search(text) else _TURN_ON_A_LINE).split("\n\n" + text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(f"'{column}' is text without the turns 'Human:' and 'Assistant:', so its prompt has no end")
    return [
        {"role": _SPEAKERS[speaker], "content": part.strip()}
        for speaker, part in zip(parts[1::2], parts[2::2], strict=True)
    ]


def checked_text(column: str, text: str) -> str:
    """Refuse text that cannot be used; return it as it is.

    Raises:
        BadRow: it is a list of messages written as JSON, or holds half a character.
    """
    if text.strip()[:1] in ("[", "{") and text.strip()[-1:] in ("]", "}") and _is_messages_as_text(text.strip()):
        raise BadRow(f"'{column}' is messages written as text; store them as a list", text)
    return whole_characters(column, text)


def whole_characters(column: str, text: str) -> str:
    """Refuse text with half a character; return it as it is.

    Raises:
        BadRow: it holds half a character, as JSON may write it, which no tokenizer and no file takes.
    """
    if _HALF_A_CHARACTER.search(text):
        raise BadRow(f"'{column}' holds a surrogate, half of a character", text)
    return text


def _is_messages_as_text(text: str) -> bool:
    """Return whether it is messages as JSON or Python writes them."""
    value: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    value = [value] if isinstance(value, dict) else value
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and ({"role", "from"} & set(part)) for part in value)
    )


def _one_of(message: Mapping[str, Any], names: tuple[str, ...], column: str) -> Any:
    given = [name for name in names if message.get(name) is not None]
    if len(given) > 1:
        raise BadRow(f"'{column}' has a message with both '{given[0]}' and '{given[1]}'")
    return message[given[0]] if given else None


def _holds(whole: list[Message], part: list[Message]) -> bool:
    """Return whether the messages of a part stand in the whole, in their order."""
    rest = iter((message["role"], message["content"].strip()) for message in whole)
    return all((message["role"], message["content"].strip()) in rest for message in part)
