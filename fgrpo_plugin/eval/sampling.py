"""Responses of a model, by vLLM in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgrpo_plugin import tables
from fgrpo_plugin.eval.kept import Chats, KeptResponses, Responses

CPU_SEQUENCES, GPU_SEQUENCES = 128, 4096
"""Responses that vLLM is given at once; what a kill loses."""
_PIECES, _PIECE = 16, 1 << 16


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        samples: responses a prompt.
        temperature: 0 is greedy.
        top_p: share of the probability that is sampled from.
        max_tokens: of a response.
        seed: of the engine.
    """

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("max_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be {least} or more.")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature={self.temperature} must lie between 0 and 10.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1].")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are the same response; ask for 1, or a temperature."
            )


@dataclass(frozen=True)
class Engine:
    """How vLLM runs.

    Attributes:
        dtype: of the weights; None is float32 on a CPU and what the model was saved in elsewhere.
        tensor_parallel: GPUs that share the model.
        chat_template: file of a chat template, in place of the tokenizer's own.
    """

    dtype: str | None = None
    tensor_parallel: int = 1
    chat_template: Path | None = None


def responses(
    model: Path,
    chats: Chats,
    output: Path,
    how: Sampling,
    *,
    engine: Engine = Engine(),  # it is frozen
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Responses:
    """Sample every chat.

    Args:
        model: Hugging Face folder.
        chats: id -> messages.
        output: a JSON line a prompt; what it holds of a run that was stopped is kept.
        how: settings of the sampling.
        engine: settings of vLLM.
        on_progress: told of prompts done and in all.

    Raises:
        ValueError: vLLM failed, and its log is named; `output` is of other settings.
    """
    template = engine.chat_template
    named = {**asdict(engine), "chat_template": tables.digest(template)[:16] if template else None}
    settings = {"weights": weights_digest(model), **asdict(how), **named}
    kept = KeptResponses(output, settings)
    found = kept.read(chats)
    missing = {key: list(chat) for key, chat in chats.items() if key not in found}
    if missing:
        work, log = output.with_suffix(".job.json"), output.with_suffix(".log")
        places = {"model": str(model), "output": str(output), "chat_template": str(template) if template else None}
        work.write_text(json.dumps({**places, "settings": settings, "chats": missing}))
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "fgrpo_plugin.eval.sampling", str(work)], stdout=said, stderr=said, env=env
            )
            try:
                while process.poll() is None:
                    on_progress(len(kept.read(chats)), len(chats))
                    time.sleep(1.0)
            finally:
                process.kill()
                process.wait()
                work.unlink()
        if process.returncode != 0:
            words = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
            reason = words[-1].strip()[:300] if words else f"it ended with {process.returncode}"
            raise ValueError(f"vLLM could not sample {model}: {reason} (log: {log}); what is in {output} is kept.")
        found = kept.read(chats)
    on_progress(len(chats), len(chats))
    return {key: found[key] for key in chats}


def weights_digest(model: Path) -> str:
    """Tell a folder's weights from others, wherever it lies: of each file the name, the size, and 16 pieces."""
    found = hashlib.sha256()
    for file in sorted(file for file in model.glob("*") if file.suffix in (".safetensors", ".bin", ".json")):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for piece in range(_PIECES):
                content.seek(max(0, size - _PIECE) * piece // (_PIECES - 1))
                found.update(content.read(_PIECE))
    return found.hexdigest()[:16]


def _sample(job: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoTokenizer
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    settings, chats = job["settings"], job["chats"]
    model, how = job["model"], Sampling(**{key: settings[key] for key in Sampling.__dataclass_fields__})
    template = Path(job["chat_template"]).read_text() if job["chat_template"] else None
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    longest = max(
        len(tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, chat_template=template)["input_ids"])
        for chat in chats.values()
    )  # fmt: skip
    window = getattr(AutoConfig.from_pretrained(model, trust_remote_code=False), "max_position_embeddings", None)
    if window and longest + how.max_tokens > window:
        raise ValueError(
            f"ValueError: its window is {window} tokens, a prompt takes {longest} and max_tokens={how.max_tokens}; "
            f"lower max_tokens to {window - longest}"
        )
    cpu = current_platform.is_cpu()
    on_cpu = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "distributed_executor_backend": "uni"}
    engine = LLM(
        model,
        dtype=settings["dtype"] or ("float32" if cpu else "auto"),
        max_model_len=longest + how.max_tokens,
        seed=how.seed,
        disable_log_stats=True,
        tensor_parallel_size=settings["tensor_parallel"],
        **(on_cpu if cpu else {}),
    )
    params = SamplingParams(n=how.samples, temperature=how.temperature, top_p=how.top_p, max_tokens=how.max_tokens)
    keys, size = list(chats), max(1, (CPU_SEQUENCES if cpu else GPU_SEQUENCES) // how.samples)
    with KeptResponses(Path(job["output"]), settings).more(chats) as add:
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            made = engine.chat([chats[key] for key in part], params, use_tqdm=False, chat_template=template)
            for key, result in zip(part, made, strict=True):
                add(key, [
                    {"text": one.text, "tokens": len(one.token_ids), "ended": one.finish_reason == "stop"}
                    for one in result.outputs
                ])  # fmt: skip


if __name__ == "__main__":
    _sample(json.loads(Path(sys.argv[1]).read_text()))
