"""Hidden states on disk: written batch by batch, continued where they stopped, of one model and never mixed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fgrpo_plugin.eval.kept import check_same
from fgrpo_plugin.folders import write_whole

States = NDArray[np.float32]
"""Of one prompt: shape (layers + 1, dimensions); row 0 is what enters the first layer."""


def prompt_key(ids: Sequence[int]) -> bytes:
    """Tell a prompt from others: SHA-256 of its tokens, and so of its words, the template and the tokenizer."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()


class KeptStates:
    """The states that a folder holds: `settings.json`, and a file of safetensors for each batch, named by its content.

    Args:
        folder: made where it is missing.
        settings: everything that a state depends on beside the prompt's tokens, as JSON holds it.

    Attributes:
        settings: as they were given.
        damaged: files whose content was not that of their name; they are removed, and their prompts are missing.

    Raises:
        ValueError: the folder is of other settings, or of something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.damaged: list[Path] = []
        self._states: dict[bytes, States] = {}
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        if file.is_file():
            try:
                found = dict(json.loads(file.read_text()))
            except (ValueError, TypeError):
                raise ValueError(f"{file} is spoilt; remove {folder}, or name another folder.") from None
            check_same(folder, found, settings)
        elif any(
            not other.name.startswith(".") for other in folder.iterdir()
        ):  # of which model they are, nobody can say
            raise ValueError(f"{folder} holds files without settings.json; remove it, or name another folder.")
        else:
            write_whole(file, (json.dumps(dict(settings), indent=1) + "\n").encode())
        for part in sorted(folder.glob("*.safetensors")):
            content = part.read_bytes()
            if hashlib.sha256(content).hexdigest() != part.stem:
                self.damaged.append(part)
                part.unlink()
                continue
            tensors = load(content)
            self._states |= dict(zip(map(bytes, tensors["prompt"]), tensors["states"], strict=True))

    def __contains__(self, key: bytes) -> bool:
        return key in self._states

    def __getitem__(self, key: bytes) -> States:
        return self._states[key]

    def add(self, keys: Sequence[bytes], states: NDArray[np.float32]) -> None:
        """Keep the states of prompts, shape (prompts, layers + 1, dimensions), in memory and on disk."""
        prompts = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1)
        content = save({"prompt": prompts, "states": np.ascontiguousarray(states, dtype=np.float32)})
        write_whole(self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
        self._states |= dict(zip(keys, states, strict=True))
