"""Log-probs of preference rows by a model of transformers, outside of verl: what its reference worker gives of them."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fgrpo_plugin.preference.token_rows import TokenRow

LOGITS_AT_ONCE = 2**26
"""Logits of a pass, of which each is four bytes: 256 MiB; a single row may have more."""


def response_log_probs(
    model: Any,
    rows: Sequence[TokenRow],
    *,
    temperature: float = 1.0,
    logits_at_once: int = LOGITS_AT_ONCE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[torch.Tensor]:
    """log pi of each response's tokens, (T,) float32 nats on the CPU, in the order of the rows.

    Rows of about the same length share a pass, padded on the right; only the logits of responses are made where the
    model can leave out the others.

    Args:
        model: a causal language model, for evaluation, on the device that it shall run on.
        rows: prompts and responses in tokens.
        temperature: by which logits are divided, as verl does with that of the rollouts.
        logits_at_once: most logits of a pass with more than one row.
        on_progress: told of responses done and in all.
    """
    found: list[torch.Tensor | None] = [None] * len(rows)
    vocabulary = int(model.config.get_text_config().vocab_size)
    done = 0
    on_progress(0, len(rows))
    for places in batches([len(row.ids) for row in rows], logits_at_once // vocabulary):
        values = _of_one_pass(model, [rows[place] for place in places], temperature)
        for place, value in zip(places, values, strict=True):
            found[place] = value
        done += len(places)
        on_progress(done, len(rows))
    return [value for value in found if value is not None]


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Places of rows that share a pass: the longest first, at most so many tokens with the padding, or one row.

    Args:
        lengths: tokens of each row.
        tokens: most in a pass.
    """
    some: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if some and (len(some) + 1) * lengths[some[0]] > tokens:
            yield some
            some = []
        some.append(place)
    if some:
        yield some


@torch.inference_mode()
def _of_one_pass(model: Any, rows: Sequence[TokenRow], temperature: float) -> list[torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)], mask[place, : len(row.ids)] = torch.from_numpy(row.ids.astype("int64")), 1
    # The logits before a token are its distribution: those of the shortest prompt's last token are the first needed.
    first = max(0, min(row.prompt_length for row in rows) - 1)
    given = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = width - first
    else:
        first = 0
    logits = model(**given).logits
    found = []
    for values, row in zip(logits, rows, strict=True):
        begin = row.prompt_length - 1 - first
        own = values[begin : begin + row.response_length].float() / temperature
        asked = torch.tensor(row.response_ids, device=own.device).unsqueeze(-1)
        found.append((own.gather(-1, asked).squeeze(-1) - own.logsumexp(dim=-1)).cpu())
    return found
