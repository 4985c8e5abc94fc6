"""Hidden states of each prompt's last token at every layer of a model, by transformers on a CPU or a GPU."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgrpo_plugin.eval.kept_states import KeptStates, prompt_key
from fgrpo_plugin.eval.sampling import weights_digest

DTYPES = ("float32", "bfloat16", "float16")


def rendered(
    model: Path, chats: Sequence[Sequence[Mapping[str, str]]], chat_template: Path | None = None
) -> list[list[int]]:
    """Prompts as the model reads them, up to where its response would begin.

    Args:
        model: Hugging Face folder.
        chats: messages of each prompt.
        chat_template: file of a template, in place of the tokenizer's own.

    Returns:
        The tokens of each prompt, the generation prompt at their end.

    Raises:
        ValueError: the tokenizer cannot be loaded or has no template, the template refuses a prompt or makes nothing of
            it, or one is longer than the model's window. Weights are not loaded.
    """
    from fgrpo_plugin.host.settings.inputs import load_tokenizer
    from fgrpo_plugin.model_loading import window_of

    tokenizer = load_tokenizer(model, "MODEL", has_template=chat_template is not None)
    template = chat_template.read_text() if chat_template else None
    how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True, "chat_template": template}
    found = []
    for chat in chats:
        try:
            found.append(list(tokenizer.apply_chat_template(list(chat), **how)["input_ids"]))
        except Exception as error:  # jinja2's own, and whatever an expression in it raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"MODEL {model}: its chat template refuses {_short(chat)} ({reason:.160}).") from None
        if not found[-1]:  # there would be no last token, and padding would be looked at
            raise ValueError(f"MODEL {model}: its chat template makes nothing of {_short(chat)}; give it another.")
    window = window_of(model, "MODEL")
    longest = max(range(len(found)), key=lambda number: len(found[number]))
    if window and len(found[longest]) > window:
        raise ValueError(
            f"MODEL {model}: its window is {window} tokens and {_short(chats[longest])} takes {len(found[longest])}; "
            "leave that prompt out."
        )
    return found


def _short(chat: Sequence[Mapping[str, str]]) -> str:
    text = " ".join(chat[-1]["content"].split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def kept_states(model: Path, folder: Path, dtype: str | None) -> KeptStates:
    """The states of a model that a folder holds.

    Args:
        model: Hugging Face folder.
        folder: where they are, or will be.
        dtype: of the weights, one of `DTYPES`; None is float32 on a CPU and as saved on a GPU.

    Raises:
        ValueError: `folder` holds states of other weights, of another dtype, or computed on another kind of device.
    """
    device = _device()
    named = dtype or ("float32" if device == "cpu" else "as saved")
    return KeptStates(folder, {"weights": weights_digest(model), "dtype": named, "device": device})


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def hidden_states(
    model: Path,
    prompts: Sequence[Sequence[int]],
    kept: KeptStates,
    *,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """The states of each prompt's last token; what `kept` lacks is computed and kept, batch by batch.

    Batches are padded on the right: a causal model's states do not depend on what follows, so that each prompt has
    those that it has alone, at the positions that it has alone.

    Args:
        model: Hugging Face folder of a causal language model; it is loaded where states are missing.
        prompts: tokens of each.
        kept: of this model, with the dtype and the device.
        batch_size: prompts at once.
        on_progress: told of prompts done and in all.

    Returns:
        Shape (prompts, layers + 1, dimensions), float32. Row 0 of the layers is what enters the first one; the last is
        as transformers gives it, behind the final normalisation of the usual models.

    Raises:
        ValueError: the model cannot be loaded, has states that are not finite (of which layer is said), or takes more
            memory than the GPU has.
    """
    keys = [prompt_key(ids) for ids in prompts]
    missing = {key: list(ids) for key, ids in zip(keys, prompts, strict=True) if key not in kept}
    if missing:
        import torch

        from fgrpo_plugin.model_loading import check_vocabulary  # with torch

        loaded = _load(model, kept)
        check_vocabulary(loaded, max(map(max, missing.values())), f"MODEL {model}")
        order = sorted(missing, key=lambda key: len(missing[key]), reverse=True)  # what is too large fails at once
        every = len(set(keys))
        on_progress(every - len(order), every)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            try:
                states = _last_states(loaded, [missing[key] for key in part])
            except torch.OutOfMemoryError:
                raise ValueError(
                    f"MODEL {model}: the GPU has too little memory for batches of {batch_size}; lower --batch-size."
                ) from None
            bad = np.flatnonzero(~np.isfinite(states).all((0, 2)))
            if len(bad):
                raise ValueError(
                    f"MODEL {model}: its hidden states are not finite from layer {bad[0]} on "
                    f"(dtype {kept.settings['dtype']}); try another --dtype, or look at its weights."
                )
            kept.add(part, states)
            on_progress(every - len(order) + start + len(part), every)
    return np.stack([kept[key] for key in keys])


def _load(model: Path, kept: KeptStates) -> Any:
    from fgrpo_plugin.model_loading import load_causal_lm  # with torch

    dtype = "auto" if kept.settings["dtype"] == "as saved" else kept.settings["dtype"]
    loaded = load_causal_lm(str(model), dtype, "MODEL", local=True)
    return loaded.to(_device()).base_model  # without the head, whose logits nobody reads


def _last_states(model: Any, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    import torch

    lengths = torch.tensor([len(ids) for ids in prompts])
    width = int(lengths.max())
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in prompts])
    mask = (torch.arange(width) < lengths[:, None]).long()
    with torch.inference_mode():
        given = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            output_hidden_states=True,
            use_cache=False,
        )
        rows = torch.arange(len(prompts))
        last = [layer[rows, lengths - 1].float().cpu() for layer in given.hidden_states]
    return torch.stack(last, dim=1).numpy()
