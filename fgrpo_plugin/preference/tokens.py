"""Rows of text -> token ids, as verl's rollouts have them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from jinja2 import TemplateError

from fgrpo_plugin.preference.formats import LabelledResponse
from fgrpo_plugin.preference.messages import BadRow
from fgrpo_plugin.preference.template import answer_end, special_tokens
from fgrpo_plugin.preference.token_rows import Builder, TokenRow, TokenRows
from fgrpo_plugin.typed_settings import require_one_of

ON_TOO_LONG = ("error", "drop", "truncate")
ON_TEMPLATED = ("error", "skip", "keep")
ROWS_AT_ONCE = 1024
# What chat templates put around turns, of whatever model; HTML's <s> is left to the tokenizer that has it.
_MARKS = re.compile(
    r"<\|[A-Za-z][A-Za-z_ ]{1,30}\|>|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>|\[gMASK\]"
    r"|(?:^|\n)### ?(?:Human|Assistant|Instruction|Response):"
    "|<\uff5c(?:User|Assistant|begin\u2581of\u2581sentence|end\u2581of\u2581sentence)\uff5c>"
)
# Where a prompt is the whole text that goes to a model, the response's turn is open at its end.
_OPEN_TURN = re.compile(r"(?:### ?Response:|\bASSISTANT:|(?:^|\n)Assistant:)\s*$")


@dataclass
class Encoded:
    """Token rows, and what became of the others.

    Attributes:
        rows: those that can be used.
        too_long: how many were "dropped", "partner dropped" (of a dropped row), "truncated", and "dropped, since both
            responses are the same once cut".
        skipped: reason -> how many rows could not be rendered, or are in a chat template already.
        first_skipped: reason -> the first of them.
    """

    rows: TokenRows = field(default_factory=lambda: Builder().build())
    too_long: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)


class Encoder:
    """Renders and tokenises rows, many at once: the prompt of a pair once.

    A prompt goes through the chat template with the generation prompt, as a rollout's does. A response is encoded by
    itself and ends with the token that ends a response.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        template: further arguments of the template, verl's `data.apply_chat_template_kwargs`.
        end: the token that ends a response; None takes `answer_end`.
        keep_templated: take text that holds marks of a chat template.

    Raises:
        ValueError: a tokenizer without template, or without a token that ends a response.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Mapping[str, Any] | None = None,
        end: int | None = None,
        *,
        keep_templated: bool = True,
    ):
        if tokenizer.chat_template is None:
            raise ValueError("the model's tokenizer has no chat template; set tokenizer.chat_template and save it.")
        self._tokenizer, self._template = tokenizer, dict(template or {})
        self.end = answer_end(tokenizer, self._template).token if end is None else end
        self._refuses = not keep_templated
        self._special = special_pattern(tokenizer) if self._refuses else None

    def encode(self, rows: Sequence[LabelledResponse]) -> list[TokenRow | BadRow]:
        """Each row in tokens, or the reason why it cannot be."""
        prompts: dict[tuple[tuple[str, str], ...], str | BadRow] = {}
        for row in rows:
            if row.prompt not in prompts:
                prompts[row.prompt] = self._rendered(row)
        texts = [text for text in prompts.values() if isinstance(text, str)]
        ids = dict(zip(texts, self._ids(texts), strict=True))
        found: list[TokenRow | BadRow] = []
        for row, response in zip(rows, self._ids([row.response for row in rows]), strict=True):
            prompt = prompts[row.prompt]
            mark = templated_mark(row, self._special) if self._refuses else None
            if mark is not None:
                found.append(_Templated(f"it holds {mark!r}, a mark of a chat template, and would be rendered twice"))
            elif isinstance(prompt, BadRow):
                found.append(prompt)
            else:
                ended = response if response and response[-1] == self.end else [*response, self.end]
                found.append(TokenRow(ids[prompt], ended, row.desirable, row.pair, row.source))
        return found

    def _rendered(self, row: LabelledResponse) -> str | BadRow:
        messages = row.messages
        try:
            text = self._tokenizer.apply_chat_template(
                messages, **{**self._template, "add_generation_prompt": True, "tokenize": False}
            )
        except TemplateError as error:
            return BadRow(f"the chat template cannot render the prompt ({error})")
        for message in messages:
            if message["role"] != "assistant" and message["content"].strip() not in text:
                return BadRow(f"the chat template leaves out, or changes, the message of the {message['role']}")
        return text

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds any special token of a tokenizer; it looks closer only where the first character of one stands."""
    found = sorted({text for text in special_tokens(tokenizer).values() if text.strip()}, key=len, reverse=True)
    if not found:
        return None
    begin = "".join(sorted({re.escape(text[0]) for text in found}))
    return re.compile(f"(?=[{begin}])(?:{'|'.join(map(re.escape, found))})")


def templated_mark(row: LabelledResponse, special: re.Pattern[str] | None = None) -> str | None:
    """Return what tells that a row is in a chat template already, or None.

    Args:
        row: its messages and response are looked at.
        special: of the model's tokenizer, whose special tokens then count too.
    """
    for text in (*(content for _, content in row.prompt), row.response):
        for pattern in (_MARKS, special):
            if pattern is not None and (found := pattern.search(text)):
                return found.group().strip()
    found = _OPEN_TURN.search(row.prompt[-1][1])
    return found.group().strip() if found else None


def encode_row(
    row: LabelledResponse, tokenizer: Any, template: Mapping[str, Any] | None = None, end: int | None = None
) -> TokenRow:
    """One row in tokens, as `Encoder` makes it.

    Raises:
        BadRow: the template cannot render the prompt (roles that it does not know or that do not alternate).
    """
    (found,) = Encoder(tokenizer, template, end).encode([row])
    if isinstance(found, BadRow):
        raise found
    return found


def template_problem(
    row: LabelledResponse, tokenizer: Any, template: Mapping[str, Any] | None = None, end: int | None = None
) -> str | None:
    """Return what differs between a row's tokens and the template's rendering of the whole conversation, or None.

    A template that trims a response, puts something before it or ends it with another token makes preference rows
    unlike what the model has been trained on.
    """
    encoded = encode_row(row, tokenizer, template, end)
    conversation = [*row.messages, {"role": "assistant", "content": row.response}]
    settings = {**(template or {}), "add_generation_prompt": False, "tokenize": True, "return_dict": True}
    try:
        whole = tokenizer.apply_chat_template(conversation, **settings)["input_ids"]
    except TemplateError as error:
        return f"the template renders the prompt, but no response behind it ({error})"
    ours = encoded.prompt_ids + encoded.response_ids
    if whole[: len(ours)] == ours:
        return None
    if whole[: len(encoded.prompt_ids)] != encoded.prompt_ids:
        return "the template renders the prompt otherwise where a response follows"
    if whole[: len(ours) - 1] == ours[:-1]:
        return "the template does not end a response with the token that rows end with"
    return "the template changes the response"


def encode(
    rows: Iterable[LabelledResponse],
    tokenizer: Any,
    *,
    max_prompt_length: int,
    max_response_length: int,
    on_too_long: str = "error",
    on_bad_row: str = "error",
    on_templated: str = "keep",
    template: Mapping[str, Any] | None = None,
    end: int | None = None,
    said: Callable[[int], None] = lambda rows: None,
) -> Encoded:
    """All rows in tokens, within verl's lengths.

    Args:
        rows: text; read once, so that they may come from files as they are asked for.
        tokenizer: as `Encoder`, and so `template` and `end`.
        max_prompt_length: tokens; verl's `data.max_prompt_length`.
        max_response_length: tokens, the end of the response among them; verl's `data.max_response_length`.
        on_too_long: "error"; "drop" leaves the row out, and its partner; "truncate" cuts a response's end off, its last
            token with it, and a prompt's beginning; a pair whose responses are then the same is dropped.
        on_bad_row: "error", or "skip": what to do with a row that the template cannot render.
        on_templated: "error", "skip" or "keep": what to do with text that holds marks of a chat template.
        said: is told how many rows are done, now and then.

    Raises:
        ValueError: an unknown setting, a tokenizer without template or end of a response, or a row that is too long or
            cannot be used where that is an error (it is named).
    """
    require_one_of("on_too_long", on_too_long, ON_TOO_LONG)
    require_one_of("on_templated", on_templated, ON_TEMPLATED)
    encoder = Encoder(tokenizer, template, end, keep_templated=on_templated == "keep")
    found, builder = Encoded(), Builder()
    dropped: set[str] = set()  # pairs that lost a row to its length, and to what it holds
    unusable: set[str] = set()
    done = 0
    for some in _batches(rows):
        for row, encoded in zip(some, encoder.encode(some), strict=True):
            if isinstance(encoded, BadRow):
                _refuse(encoded, row, on_bad_row, on_templated)
                found.skipped[str(encoded)] += 1
                found.first_skipped.setdefault(str(encoded), row.source)
                unusable |= {row.pair} if row.pair is not None else set()
                continue
            prompt, response = encoded.prompt_length, encoded.response_length
            if prompt <= max_prompt_length and response <= max_response_length:
                builder.add(encoded)
            elif on_too_long == "error":
                raise ValueError(
                    f"{row.source}: prompt of {prompt} and response of {response} tokens, at most {max_prompt_length} "
                    f"and {max_response_length} fit; raise data.max_prompt_length or data.max_response_length, or set "
                    "data.preference.on_too_long to drop or truncate."
                )
            elif on_too_long == "drop":
                found.too_long["dropped"] += 1
                dropped |= {row.pair} if row.pair is not None else set()
            else:
                found.too_long["truncated"] += 1
                builder.add(cut(encoded, max_prompt_length, max_response_length))
        done += len(some)
        said(done)
    found.rows = _without(builder.build(), unusable)
    kept = _without(found.rows, dropped)
    if partners := len(found.rows) - len(kept):
        found.too_long["partner dropped"] = partners
    found.rows = kept
    if found.too_long["truncated"]:
        _drop_equal_sides(found)
    return found


def cut(row: TokenRow, max_prompt_length: int, max_response_length: int) -> TokenRow:
    """A row within verl's lengths, in tokens: without the prompt's beginning and the response's end."""
    ids = row.prompt_ids[-max_prompt_length:], row.response_ids[:max_response_length]
    return TokenRow(*ids, row.desirable, row.pair, row.source)


def _refuse(reason: BadRow, row: LabelledResponse, on_bad_row: str, on_templated: str) -> None:
    is_templated = isinstance(reason, _Templated)
    if (on_templated if is_templated else on_bad_row) != "error":
        return
    setting = "on_templated=skip, or keep to train on it as it is" if is_templated else "on_bad_row=skip"
    raise ValueError(f"{row.source}: {reason}; correct it, or set data.preference.{setting}.")


class _Templated(BadRow):
    """Text that is in a chat template already."""


def _without(rows: TokenRows, pairs: set[str]) -> TokenRows:
    if not pairs:
        return rows
    return rows.select(np.array([row.pair is None or row.pair not in pairs for row in rows], dtype=bool))


def _drop_equal_sides(found: Encoded) -> None:
    """Drop pairs whose two responses are the same once both are cut to the longest length."""
    rows = found.rows
    sides: dict[tuple[int, bytes], set[bool]] = {}
    for pair, digest, desirable in zip(rows.pairs.tolist(), rows.digests, rows.desirable.tolist(), strict=True):
        if pair >= 0:
            sides.setdefault((pair, digest.tobytes()), set()).add(desirable)
    equal = [pair for (pair, _), both in sides.items() if len(both) == 2]
    kept = rows.select(~np.isin(rows.pairs, equal))
    if same := len(rows) - len(kept):
        found.too_long["dropped, since both responses are the same once cut"] = same
    found.rows = kept


def _batches(rows: Iterable[LabelledResponse]) -> Iterator[list[LabelledResponse]]:
    rest = iter(rows)
    while some := list(islice(rest, ROWS_AT_ONCE)):
        yield some
