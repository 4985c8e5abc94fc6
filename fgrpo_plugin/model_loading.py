"""A causal language model from its Hugging Face folder; what is wrong with the folder is one sentence."""

import json
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def load_causal_lm(
    model: str,
    dtype: torch.dtype | str,
    setting: str,
    *,
    attention: str | None = None,
    trust: bool = False,
    local: bool = False,
) -> Any:
    """A whole model on the CPU, for evaluation.

    Args:
        model: a folder, or a name on a model hub.
        dtype: to load in; ``auto`` for that of its files.
        setting: what the user set, for messages.
        attention: transformers' name of an implementation of attention; None takes its choice.
        trust: run the model's own code.
        local: fetch nothing from a hub.

    Raises:
        ValueError: it cannot be loaded, or its files lack weights.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            loaded, found = AutoModelForCausalLM.from_pretrained(
                model,
                dtype=dtype,
                trust_remote_code=trust,
                output_loading_info=True,
                attn_implementation=attention,
                local_files_only=local,
            )
    except Exception as error:  # of many kinds: OSError, ValueError, safetensors' own, KeyError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{setting}={model} cannot be loaded ({reason:.160}).") from None
    if lacking := sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"])):
        raise ValueError(
            f"{setting}={model}: its files lack {lacking[0]} and {len(lacking) - 1} more; name a whole one."
        )
    return loaded.eval()


def window_of(model: Path, setting: str) -> int | None:
    """The most tokens that a folder's model can read, or None where its configuration names no such number.

    Raises:
        ValueError: the configuration cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False).get_text_config()
    except Exception as error:  # of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{setting}={model}: its config.json cannot be read ({reason:.160}).") from None
    return getattr(config, "max_position_embeddings", None)


def check_vocabulary(model: Any, largest: int, where: str) -> None:
    """Refuse tokens that a model has no embedding of.

    Args:
        model: a causal language model, or its base.
        largest: the largest id that it is to read.
        where: what the user set and its value, for the message.

    Raises:
        ValueError: the tokenizer in the folder has more tokens than the model.
    """
    size = int(model.config.get_text_config().vocab_size)
    if largest >= size:
        raise ValueError(
            f"{where}: its tokenizer gives token {largest} and the model has {size}; save the tokenizer that belongs "
            "to it there, or enlarge the model's embeddings."
        )


def parameters_in(files: Iterable[Path]) -> int:
    """Count the numbers that weight files hold: by their headers where they are safetensors, else two bytes are one.

    Raises:
        ValueError: a file is damaged.
    """
    count = 0
    for file in files:
        if file.suffix != ".safetensors":
            count += file.stat().st_size // 2
            continue
        with file.open("rb") as content:
            try:
                (length,) = struct.unpack("<Q", content.read(8))
                if length > file.stat().st_size - 8:
                    raise ValueError(length)
                header = json.loads(content.read(length))
                count += sum(math.prod(value["shape"]) for name, value in header.items() if name != "__metadata__")
            except (struct.error, ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{file} is no safetensors file, or is cut off; write it anew.") from None
    return count


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and advice about the model's own settings, of which a log would be full."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
