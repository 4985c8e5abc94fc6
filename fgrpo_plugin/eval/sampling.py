"""Responses of a model, by vLLM in a process of its own: written as they come, continued where they stopped."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHUNK = 128
"""Prompts that vLLM is given at once; what is written is whole chunks."""


def responses(
    model: Path,
    chats: Mapping[str, Sequence[Mapping[str, str]]],
    output: Path,
    *,
    samples: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[dict[str, Any]]]:
    """Sample every chat.

    Args:
        model: Hugging Face folder.
        chats: id -> messages.
        output: a JSON line a prompt; what it holds of a run that was stopped is kept.
        samples: responses a prompt.
        temperature: 0 is greedy.
        max_tokens: of a response.
        seed: of the engine.
        on_progress: told of prompts done and in all.

    Returns:
        id -> responses, each with `text`, `tokens` and `ended`: whether it ended by itself.

    Raises:
        ValueError: vLLM failed, and its log is named; `output` is of other settings; several greedy samples.
    """
    if temperature == 0 and samples > 1:
        raise ValueError(f"{samples} samples at temperature 0 are the same response; ask for 1, or a temperature.")
    job = {"model": str(model), "samples": samples, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    head = {"settings": job}
    output.parent.mkdir(parents=True, exist_ok=True)
    found = _read(output, head)
    missing = {key: list(chat) for key, chat in chats.items() if key not in found}
    if missing:
        work, log = output.with_suffix(".job.json"), output.with_suffix(".log")
        work.write_text(json.dumps({**job, "output": str(output), "chats": missing}))
        if not output.is_file():
            output.write_text(json.dumps(head) + "\n")
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "fgrpo_plugin.eval.sampling", str(work)], stdout=said, stderr=said, env=env
            )
            try:
                while process.poll() is None:
                    on_progress(len(_read(output, head)), len(chats))
                    time.sleep(1.0)
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            words = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line] or ["no error"]
            raise ValueError(f"vLLM could not sample {model}: {words[-1].strip()[:300]} (log: {log}).")
        work.unlink()
        found = _read(output, head)
    on_progress(len(chats), len(chats))
    return {key: found[key] for key in chats}


def _read(output: Path, head: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    if not output.is_file():
        return {}
    lines = output.read_text().splitlines(keepends=True)
    if lines and json.loads(lines[0]) != head:
        raise ValueError(f"{output} was made with other settings; remove it, or name another folder.")
    whole = [json.loads(line) for line in lines[1:] if line.endswith("\n")]
    return {row["id"]: row["responses"] for row in whole}


def _sample(job: dict[str, Any]) -> None:
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        for chat in job["chats"].values()
    ]
    engine = LLM(
        job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=max(map(len, prompts)) + job["max_tokens"],
        kv_cache_memory_bytes=1 << 30,
        distributed_executor_backend="uni",
        seed=job["seed"],
        disable_log_stats=True,
    )
    how = SamplingParams(n=job["samples"], temperature=job["temperature"], max_tokens=job["max_tokens"])
    keys = list(job["chats"])
    output = Path(job["output"])
    text = output.read_text()
    if not text.endswith("\n"):  # of a run that was killed while it wrote
        output.write_text(text[: text.rfind("\n") + 1])
    with output.open("a") as lines:
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            made = engine.chat([job["chats"][key] for key in part], how, use_tqdm=False)
            for key, result in zip(part, made, strict=True):
                given = [
                    {"text": one.text, "tokens": len(one.token_ids), "ended": one.finish_reason == "stop"}
                    for one in result.outputs
                ]
                lines.write(json.dumps({"id": key, "responses": given}) + "\n")
            lines.flush()


if __name__ == "__main__":
    _sample(json.loads(Path(sys.argv[1]).read_text()))
