"""Responses from a server: vLLM's own, killed in the middle too, and one of ours that answers oddly."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fgrpo_plugin.eval import server
from fgrpo_plugin.eval.sampling import Sampling
from fgrpo_plugin.eval.server import server_responses
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

HOW = Sampling(samples=2, temperature=1.0, max_tokens=5)
CHATS = {str(number): [{"role": "user", "content": f"{number}+1="}] for number in range(6)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(server, "RETRIES", 0)
    monkeypatch.setattr(server, "AT_ONCE", 2)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    tokenizer = build_tokenizer()
    model = save_model(build_model(tokenizer, 0), tokenizer, folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"-m vllm.entrypoints.openai.api_server --model {model} --served-model-name tiny --host 127.0.0.1"
    command += f" --port {port} --enforce-eager --dtype float32 --max-model-len 64 --kv-cache-memory-bytes {1 << 28}"
    words = [sys.executable, *command.split()]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        words, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        end(process)


def end(process):
    """End the server and the processes that it started, whether it lives or not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_vllms_server_answers_and_what_it_answered_is_kept_when_it_dies(vllm, tmp_path):
    url, process = vllm
    output = tmp_path / "set.jsonl"
    first = dict(list(CHATS.items())[:3])
    seen = []
    found = server_responses(
        url, "tiny", first, output, HOW, on_progress=lambda done, total: seen.append((done, total))
    )
    assert list(found) == list(first) and seen[0] == (0, 3) and seen[-1] == (3, 3)
    for given in found.values():
        assert len(given) == 2 and all(1 <= one["tokens"] <= 5 for one in given)
        assert all(one["ended"] == (one["tokens"] < 5) or one["ended"] for one in given)
    with pytest.raises(ValueError, match=r"failed on other: .*other.*does not exist.*; 0 of 6 prompts are kept in"):
        server_responses(url, "other", CHATS, tmp_path / "other.jsonl", HOW)
    end(process)
    with pytest.raises(ValueError, match=r"failed on tiny: Connection error.*; 3 of 6 prompts are kept in") as error:
        server_responses(url, "tiny", CHATS, output, HOW)
    assert "\n" not in str(error.value)
    assert server_responses(url, "tiny", first, output, HOW) == found  # complete: nothing is asked


class Odd(BaseHTTPRequestHandler):
    """Answers `answers` after one another, then the last one for ever; None is an error of the server."""

    answers: list
    asked: list

    def do_POST(self):
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = json.dumps(answer if answer is not None else {"error": {"message": "out of memory"}}).encode()
        self.send_response(200 if answer is not None else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


def reply(content="7", finish="stop", usage=None):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@pytest.fixture
def odd():
    handler = type("Handler", (Odd,), {"answers": [reply()], "asked": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/v1", handler
    served.shutdown()
    served.server_close()


def test_what_is_asked_is_what_was_set_and_the_key_is_written_nowhere(odd, tmp_path, monkeypatch):
    url, handler = odd
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    handler.answers = [reply("4", usage={"completion_tokens": 3, "prompt_tokens": 1, "total_tokens": 4})]
    how = Sampling(samples=2, temperature=0.7, top_p=0.9, max_tokens=11)
    found = server_responses(url, "m", {"0": CHATS["0"]}, tmp_path / "set.jsonl", how)
    assert found == {"0": [{"text": "4", "tokens": 3, "ended": True}] * 2}
    assert len(handler.asked) == 2
    for path, body, headers in handler.asked:
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret-key"
        assert body == {"model": "m", "messages": CHATS["0"], "temperature": 0.7, "top_p": 0.9, "max_tokens": 11}
    assert "secret-key" not in (tmp_path / "set.jsonl").read_text()


def test_no_text_no_counts_and_a_cut_response(odd, tmp_path):
    url, handler = odd
    handler.answers = [reply(None), reply("1 2", "length")]
    found = server_responses(url, "m", {"0": CHATS["0"]}, tmp_path / "set.jsonl", HOW)
    assert found["0"] == [{"text": "", "tokens": None, "ended": True}, {"text": "1 2", "tokens": None, "ended": False}]


def test_a_server_that_fails_in_the_middle_and_comes_back(odd, tmp_path):
    url, handler = odd
    output, how = tmp_path / "set.jsonl", replace(HOW, samples=1)
    handler.answers = [reply(), reply(), reply(), None]
    with pytest.raises(ValueError, match=r"failed on m: .*out of memory.*; 3 of 6 prompts are kept in .*set\.jsonl"):
        server_responses(url, "m", CHATS, output, how)
    handler.answers, before = [reply()], len(handler.asked)
    assert list(server_responses(url, "m", CHATS, output, how)) == list(CHATS)
    assert len(handler.asked) - before == 3  # those that were missing


def test_a_failure_of_a_moment_is_tried_again(odd, tmp_path, monkeypatch):
    url, handler = odd
    monkeypatch.setattr(server, "RETRIES", 2)
    handler.answers = [None, reply()]
    assert list(server_responses(url, "m", CHATS, tmp_path / "set.jsonl", replace(HOW, samples=1))) == list(CHATS)


def test_another_server_model_or_temperature_is_another_evaluation(odd, tmp_path):
    url, _ = odd
    output = tmp_path / "set.jsonl"
    server_responses(url, "m", CHATS, output, HOW)
    for other, model, how, said in (
        (url.replace("/v1", "/v2"), "m", HOW, "server"),
        (url, "n", HOW, "model m, now n"),
        (url, "m", replace(HOW, temperature=0.5), "temperature 1.0, now 0.5"),
    ):
        with pytest.raises(ValueError, match=rf"was made with other settings \({said}"):
            server_responses(other, model, CHATS, output, how)


ERROR = {"error": {"message": "too long"}}


@pytest.mark.parametrize("answer", ["<html>login</html>", {**reply(), "choices": []}, ERROR, [1], reply([{"a": 1}])])
def test_a_success_without_a_response_is_one_sentence_and_what_was_done_is_kept(odd, tmp_path, answer):
    url, handler = odd
    handler.answers = [reply(), reply(), answer]
    with pytest.raises(
        ValueError, match=r"failed on m: it answers with.*; 2 of 6 prompts are kept in .*set\.jsonl"
    ) as no:
        server_responses(url, "m", CHATS, tmp_path / "set.jsonl", replace(HOW, samples=1))
    assert "\n" not in str(no.value) and (answer is not ERROR or "too long" in str(no.value))


def test_who_stops_does_not_wait_for_what_is_under_way(odd, tmp_path, monkeypatch):
    url, handler = odd
    before, go = handler.do_POST, threading.Event()

    def slow(self):
        if len(self.asked) >= 2:
            go.wait(30)
        before(self)

    def stopped(done, total):
        if done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(handler, "do_POST", slow)
    monkeypatch.setattr(server, "AT_ONCE", 2)
    output, how = tmp_path / "set.jsonl", replace(HOW, samples=1)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            server_responses(url, "m", CHATS, output, how, on_progress=stopped)
        assert time.monotonic() - began < 20 and len(output.read_text().splitlines()) == 2
    finally:
        go.set()
