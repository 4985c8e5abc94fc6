"""What a tokenizer's chat template does with a response: where it ends, and whether rows and template agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError


@dataclass(frozen=True)
class AnswerEnd:
    """The token that ends a response.

    Attributes:
        token: its id.
        problem: what is odd about it, or None.
    """

    token: int
    problem: str | None = None


def stop_tokens(model: str | Path) -> list[int]:
    """Ids at which a rollout engine ends a response beside the tokenizer's own: the generation config's `eos_token_id`.

    Args:
        model: folder or name on a hub; its configuration is asked where it has no generation_config.json.
    """
    from transformers import AutoConfig, GenerationConfig

    for kind, more in ((GenerationConfig, {}), (AutoConfig, {"trust_remote_code": False})):
        try:
            found = kind.from_pretrained(model, **more).eos_token_id
        except (OSError, ValueError, AttributeError):
            continue
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Id -> text of the tokens that stand for themselves in a text."""
    found = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    for number, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True):
        found.setdefault(number, str(text))
    return found


def answer_end(tokenizer: Any, template: Mapping[str, Any] | None = None, stops: Sequence[int] = ()) -> AnswerEnd:
    """Find the token that ends a response: one at which rollouts stop, and that the template puts behind a response.

    Args:
        tokenizer: with a chat template.
        template: further arguments of the template.
        stops: from `stop_tokens`.

    Raises:
        ValueError: neither the template nor the tokenizer nor the generation config has such a token.
    """
    known = list(dict.fromkeys([*stops, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))
    if not known:
        raise ValueError("the model's tokenizer has no end-of-sequence token; set tokenizer.eos_token and save it.")
    special = special_tokens(tokenizer)
    written = _behind_an_answer(tokenizer, dict(template or {}), special)
    for token in written:
        if token in known:
            return AnswerEnd(token)
    if not written:
        return AnswerEnd(known[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    where = ", ".join(repr(special.get(token, token)) for token in known)
    return AnswerEnd(
        written[0],
        f"the template ends a response with {special[written[0]]!r}, and rollouts stop at {where} alone: add "
        f"{written[0]} to eos_token_id in generation_config.json, else no rollout ends there",
    )


def _behind_an_answer(tokenizer: Any, template: dict[str, Any], special: Mapping[int, str]) -> list[int]:
    """The first special token that the template puts behind a response, at a conversation's end and before a turn."""
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    found = []
    for more in ([], [{"role": "user", "content": "three"}]):
        settings = {**template, "tokenize": False, "add_generation_prompt": False}
        try:
            text = tokenizer.apply_chat_template([*turns, *more], **settings)
        except TemplateError:
            continue
        after = text.rpartition("two")[2].partition("three")[0]
        ids = tokenizer(after, add_special_tokens=False)["input_ids"]
        found += [token for token in ids if token in special][:1]
    return found
