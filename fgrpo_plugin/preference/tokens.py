"""Rows of text -> token ids, as the host's rollouts have them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import TemplateError

from fgrpo_plugin.preference.formats import BadRow, LabelledResponse
from fgrpo_plugin.setting_checks import require_one_of

ON_TOO_LONG = ("error", "drop", "truncate")


class TokenRow:
    """A preference row in tokens: the prompt ends where the assistant's answer begins, the response with its end.

    Attributes:
        ids: (prompt + response,) int32; a list of Python integers would take ten times the memory.
        prompt_length: tokens of the prompt.
        desirable: whether the row is of D+.
        pair: name of the pair that it is half of, or None.
        source: file and row, for messages.
        digest: SHA-256 of the tokens and of where the response begins: what a log-prob of the row depends on.
    """

    __slots__ = ("desirable", "digest", "ids", "pair", "prompt_length", "source")

    def __init__(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], desirable: bool, pair: str | None, source: str
    ):
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in (prompt_ids, response_ids)])
        head = np.array([len(prompt_ids)], dtype=np.int64)
        self.ids = ids.astype(np.int32)
        self.prompt_length = len(prompt_ids)
        self.desirable = desirable
        self.pair = pair
        self.source = source
        self.digest = hashlib.sha256(head.tobytes() + ids.tobytes()).digest()

    @property
    def response_length(self) -> int:
        """Tokens of the response."""
        return len(self.ids) - self.prompt_length

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's tokens."""
        return self.ids[: self.prompt_length].tolist()

    @property
    def response_ids(self) -> list[int]:
        """The response's tokens."""
        return self.ids[self.prompt_length :].tolist()


@dataclass
class Encoded:
    """Token rows, and what became of the others.

    Attributes:
        rows: those that can be used.
        too_long: how many were "dropped", "partner dropped" (of a dropped row), "truncated", and "dropped, since both
            sides are the same once cut".
        skipped: reason -> how many rows the chat template cannot render, their partners among them.
    """

    rows: list[TokenRow] = field(default_factory=list)
    too_long: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


def encode_row(row: LabelledResponse, tokenizer: Any, template: Mapping[str, Any] | None = None) -> TokenRow:
    """One row in tokens.

    The prompt goes through the chat template with the generation prompt, as a rollout's does. The response is encoded
    by itself and ends with the tokenizer's end-of-sequence token, where a rollout stops.

    Args:
        row: text.
        tokenizer: a Hugging Face tokenizer with a chat template.
        template: further arguments of the template, the host's `data.apply_chat_template_kwargs`.

    Raises:
        BadRow: the template cannot render the prompt (roles that it does not know or that do not alternate).
    """
    try:
        rendered = tokenizer.apply_chat_template(
            row.messages, add_generation_prompt=True, tokenize=True, return_dict=True, **(template or {})
        )
    except TemplateError as error:
        raise BadRow(f"the chat template cannot render the prompt ({error})") from error
    response = tokenizer(row.response, add_special_tokens=False)["input_ids"]
    if not response or response[-1] != tokenizer.eos_token_id:
        response = [*response, tokenizer.eos_token_id]
    return TokenRow(list(rendered["input_ids"]), response, row.desirable, row.pair, row.source)


def encode(
    rows: Sequence[LabelledResponse],
    tokenizer: Any,
    *,
    max_prompt_length: int,
    max_response_length: int,
    on_too_long: str = "error",
    on_bad_row: str = "error",
    template: Mapping[str, Any] | None = None,
) -> Encoded:
    """All rows in tokens, within the host's lengths.

    Args:
        rows: text.
        tokenizer: as `encode_row`.
        max_prompt_length: tokens; the host's `data.max_prompt_length`.
        max_response_length: tokens, the end of sequence among them; the host's `data.max_response_length`.
        on_too_long: "error"; "drop" leaves the row out, and its partner; "truncate" cuts a response's end off, the end
            of sequence with it, and a prompt's beginning; a pair whose sides are then the same is dropped.
        on_bad_row: "error", or "skip": what to do with a row that the template cannot render.
        template: as `encode_row`.

    Raises:
        ValueError: an unknown setting, a tokenizer without template or end of sequence, or a row that is too long where
            that is an error (it is named).
    """
    require_one_of("on_too_long", on_too_long, ON_TOO_LONG)
    if tokenizer.chat_template is None:
        raise ValueError("the model's tokenizer has no chat template; set tokenizer.chat_template and save it.")
    if tokenizer.eos_token_id is None:
        raise ValueError("the model's tokenizer has no end-of-sequence token; set tokenizer.eos_token and save it.")
    found = Encoded()
    dropped: set[str] = set()
    unusable: set[str] = set()
    for row in rows:
        try:
            encoded = encode_row(row, tokenizer, template)
        except BadRow as reason:
            if on_bad_row == "error":
                remedy = "correct it, or set data.preference.on_bad_row=skip"
                raise ValueError(f"{row.source}: {reason}; {remedy}.") from None
            found.skipped[str(reason)] += 1
            unusable |= {row.pair} if row.pair is not None else set()
            continue
        prompt, response = encoded.prompt_length, encoded.response_length
        if prompt <= max_prompt_length and response <= max_response_length:
            found.rows.append(encoded)
        elif on_too_long == "error":
            raise ValueError(
                f"{row.source}: prompt of {prompt} and response of {response} tokens, at most {max_prompt_length} and "
                f"{max_response_length} fit; raise data.max_prompt_length or data.max_response_length, or set "
                "data.preference.on_too_long to drop or truncate."
            )
        elif on_too_long == "drop":
            found.too_long["dropped"] += 1
            if row.pair is not None:
                dropped.add(row.pair)
        else:
            found.too_long["truncated"] += 1
            found.rows.append(
                TokenRow(
                    encoded.prompt_ids[-max_prompt_length:],
                    encoded.response_ids[:max_response_length],
                    row.desirable,
                    row.pair,
                    row.source,
                )
            )
    found.rows = [row for row in found.rows if row.pair is None or row.pair not in unusable]
    kept = [row for row in found.rows if row.pair is None or row.pair not in dropped]
    if partners := len(found.rows) - len(kept):
        found.too_long["partner dropped"] = partners
    found.rows = kept
    if found.too_long["truncated"]:
        _drop_equal_sides(found)
    return found


def _drop_equal_sides(found: Encoded) -> None:
    """Drop pairs whose two responses are the same once both are cut to the longest length."""
    sides: dict[tuple[str, bytes], set[bool]] = {}
    for row in found.rows:
        if row.pair is not None:
            sides.setdefault((row.pair, row.digest), set()).add(row.desirable)
    equal = {pair for (pair, _), both in sides.items() if len(both) == 2}
    kept = [row for row in found.rows if row.pair not in equal]
    if same := len(found.rows) - len(kept):
        found.too_long["dropped, since both sides are the same once cut"] = same
    found.rows = kept


def template_problem(row: LabelledResponse, tokenizer: Any) -> str | None:
    """What differs between a row's tokens and the template's rendering of the whole conversation, or None.

    A template that trims an answer, puts something before it or ends it with another token makes preference rows unlike
    what the model has been trained on.
    """
    encoded = encode_row(row, tokenizer)
    conversation = [*row.messages, {"role": "assistant", "content": row.response}]
    try:
        whole = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=False, tokenize=True, return_dict=True
        )["input_ids"]
    except TemplateError as error:
        return f"the template renders the prompt, but no answer behind it ({error})"
    ours = encoded.prompt_ids + encoded.response_ids
    if whole[: len(ours)] == ours:
        return None
    if whole[: len(encoded.prompt_ids)] != encoded.prompt_ids:
        return "the template renders the prompt otherwise where an answer follows"
    if whole[: len(ours) - 1] == ours[:-1]:
        return "the template does not end an answer with the tokenizer's end-of-sequence token"
    return "the template changes the answer"
