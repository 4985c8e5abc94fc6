"""Two runs of one machine send their weights at once, by verl's own sender and receiver."""

import asyncio
import threading
import uuid

import pytest
import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender

from fgrpo_plugin.host.worker.weight_sockets import of_this_run
from fgrpo_plugin.processes import MARKER


@pytest.fixture
def handle():
    """What verl calls it in each run that has a Ray of its own."""
    return f"ipc:///tmp/fgrpo-test-{uuid.uuid4().hex[:12]}-replica-0-rank-0.sock"


def test_an_engine_gets_the_weights_of_its_own_run(handle, monkeypatch):
    runs, got, threads = {"one": 1.0, "two": 2.0}, {}, []
    for run, value in runs.items():
        monkeypatch.setenv(MARKER, run)
        sender = BucketedWeightSender(handle, 1, use_shm=True)
        receiver = BucketedWeightReceiver(zmq_handle=handle, device=torch.device("cpu"), use_shm=True)
        sender._init_socket()  # both are there before an engine asks: the second's would have taken the first's place
        monkeypatch.setattr(sender, "_init_socket", lambda: None)

        def send(sender=sender, value=value):
            asyncio.run(sender.async_send_weights(iter([("weight", torch.full((3,), value))])))

        def receive(receiver=receiver, run=run):
            receiver.receive_weights(lambda weights, is_last: got.setdefault(run, float(weights[0][1][0])))

        threads += [threading.Thread(target=work, daemon=True) for work in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == runs


def test_without_a_marker_and_for_other_addresses_it_is_verls(handle, monkeypatch):
    monkeypatch.delenv(MARKER, raising=False)
    assert of_this_run(handle) == handle
    monkeypatch.setenv(MARKER, "one/../with a name")
    assert of_this_run("tcp://127.0.0.1:5") == "tcp://127.0.0.1:5"
    own = of_this_run(handle)
    assert own == of_this_run(handle) != handle and own.endswith(".sock") and own.count("/") == handle.count("/")
    longest = "ipc:///tmp/rl-colocate-zmq-ffffffff-replica-1000-rank-100.sock"
    assert len(of_this_run(longest)) - len("ipc://") < 107  # of a socket's path
