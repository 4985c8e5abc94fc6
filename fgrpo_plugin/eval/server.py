"""Responses of a model behind a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp and others."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.kept import Chats, KeptResponses, Responses
from fgrpo_plugin.eval.sampling import Sampling

AT_ONCE = 32
"""Requests that are under way together."""
RETRIES, SECONDS = 3, 600.0
"""Tries beyond the first of a request that fails for a while, and how long one may take."""


def server_responses(
    url: str,
    model: str,
    chats: Chats,
    output: Path,
    how: Sampling,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Responses:
    """Sample every chat; the key is read from the environment's OPENAI_API_KEY and written nowhere.

    Each response is a request of its own, because not every server takes `n`; the seed is the server's.

    Args:
        url: of the server's API, for example http://localhost:8000/v1.
        model: the name that it is served under.
        chats: id -> messages.
        output: a JSON line a prompt; what it holds of a run that was stopped is kept.
        how: settings of the sampling.
        on_progress: told of prompts done and in all.

    Raises:
        ValueError: the server cannot be reached, refuses, or is gone in the middle; `output` is of other settings.
    """
    from openai import OpenAI, OpenAIError

    kept = KeptResponses(output, {"server": url, "model": model, **asdict(how)})
    found = kept.read(chats)
    missing = [key for key in chats if key not in found]
    if missing:
        token = os.environ.get("OPENAI_API_KEY", "none")
        client = OpenAI(base_url=url, api_key=token, max_retries=RETRIES, timeout=SECONDS)

        def ask(key: str) -> list[dict[str, Any]]:
            return [_one(client, model, chats[key], how) for _ in range(how.samples)]

        failed: OpenAIError | None = None
        done = len(chats) - len(missing)
        on_progress(done, len(chats))
        with kept.more(chats) as add, ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = {pool.submit(ask, key): key for key in missing}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        key = waiting.pop(future)
                        if future.cancelled():
                            continue
                        try:
                            add(key, future.result())
                        except OpenAIError as error:  # what is under way is kept if it succeeds, the rest is not begun
                            failed = failed or error
                            for other in waiting:
                                other.cancel()
                        else:
                            done += 1
                            on_progress(done, len(chats))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            reason = " ".join(str(failed).split())[:300] or type(failed).__name__
            raise ValueError(
                f"{url} failed on {model}: {reason}; {done} of {len(chats)} prompts are kept in {output}, and the same "
                "command goes on."
            )
        found = kept.read(chats)
    on_progress(len(chats), len(chats))
    return {key: found[key] for key in chats}


def _one(client: Any, model: str, chat: Sequence[Mapping[str, str]], how: Sampling) -> dict[str, Any]:
    given = client.chat.completions.create(
        model=model,
        messages=list(chat),
        temperature=how.temperature,
        top_p=how.top_p,
        max_tokens=how.max_tokens,
    )
    choice = given.choices[0]
    tokens = given.usage.completion_tokens if given.usage is not None else None
    return {"text": choice.message.content or "", "tokens": tokens, "ended": choice.finish_reason == "stop"}
