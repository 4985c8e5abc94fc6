"""Responses of a model behind a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp and others."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fgrpo_plugin.eval.kept import Chats, KeptResponses, Responses
from fgrpo_plugin.eval.sampling import Sampling
from fgrpo_plugin.foreign_text import without_private, without_secrets

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

    shown = without_private(url)
    kept = KeptResponses(output, {"server": shown, "model": model, **asdict(how)})
    found = kept.read(chats)
    missing = [key for key in chats if key not in found]
    if missing:
        token = os.environ.get("OPENAI_API_KEY", "none")
        client = OpenAI(base_url=url, api_key=token, max_retries=RETRIES, timeout=SECONDS)

        def ask(key: str) -> list[dict[str, Any]]:
            return [_one(client, model, chats[key], how) for _ in range(how.samples)]

        failed: Exception | None = None
        done = len(chats) - len(missing)
        on_progress(done, len(chats))
        with kept.more(chats) as add:
            for key, given in _at_once(missing, ask):
                if isinstance(given, Exception):
                    failed = failed or given
                else:
                    add(key, given)
                    done += 1
                    on_progress(done, len(chats))
        if failed is not None and not isinstance(failed, OpenAIError | ValueError):
            raise failed
        if failed is not None:
            reason = without_secrets(" ".join(str(failed).split()))[:300] or type(failed).__name__
            raise ValueError(
                f"{shown} failed on {model}: {reason}; {done} of {len(chats)} prompts are kept in {output}, and the "
                "same command goes on."
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
    try:
        choice = given.choices[0]
        text, ended = choice.message.content or "", choice.finish_reason == "stop"
    except (AttributeError, TypeError, IndexError):  # a proxy's page, an error that is sent as a success
        said = given if isinstance(given, str) else getattr(given, "error", None) or given
        raise _NoResponseError(f"it answers without a response ({str(said)[:150]})") from None
    if not isinstance(text, str):
        raise _NoResponseError(f"it answers with something else than text ({str(text)[:150]})")
    tokens = given.usage.completion_tokens if given.usage is not None else None
    return {"text": text, "tokens": tokens, "ended": ended}


class _NoResponseError(ValueError):
    pass


def _at_once(
    keys: Sequence[str], ask: Callable[[str], list[dict[str, Any]]]
) -> Iterator[tuple[str, list[dict[str, Any]] | Exception]]:
    """Yield each key's responses as they come; after a failure wait for what is under way, and begin no more.

    The threads are daemons: who leaves, by Ctrl-C for one, does not wait for what is under way.
    """
    todo: SimpleQueue[str] = SimpleQueue()
    came: SimpleQueue[tuple[str, list[dict[str, Any]] | Exception] | None] = SimpleQueue()
    stop = threading.Event()
    for key in keys:
        todo.put(key)

    def work() -> None:
        while not stop.is_set():
            try:
                key = todo.get_nowait()
            except Empty:
                break
            try:
                came.put((key, ask(key)))
            except Exception as error:  # the caller's to judge
                stop.set()
                came.put((key, error))
        came.put(None)

    workers = min(AT_ONCE, len(keys))
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    try:
        while workers:
            one = came.get()
            if one is None:
                workers -= 1
            else:
                yield one
    finally:
        stop.set()
