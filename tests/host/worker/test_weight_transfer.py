"""A transfer of weights whose receiver fails, dies or leaves too early ends with the cause."""

import os
import time
import uuid

import pytest
import ray
import zmq

from fgrpo_plugin.host.worker import weight_transfer
from fgrpo_plugin.host.worker.weight_transfer import WatchedSocket


@ray.remote(num_cpus=0, max_concurrency=2)
class Engine:
    def fail(self) -> None:
        raise NotImplementedError("these weights cannot be loaded")

    def die(self) -> None:
        os._exit(1)

    def leave(self) -> None:
        """Return without an answer."""

    def answer(self, address: str, after: float) -> None:
        time.sleep(after)
        socket = zmq.Context.instance().socket(zmq.REP)
        socket.connect(address)
        assert socket.recv_pyobj() == "weights"
        time.sleep(after)
        socket.send(b"taken")
        socket.close()


@pytest.fixture(scope="module", autouse=True)
def small_ray(tmp_path_factory):
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(tmp_path_factory.mktemp("r")))
    yield
    ray.shutdown()


@pytest.fixture
def address():
    return f"ipc:///tmp/fgrpo-test-{uuid.uuid4().hex[:12]}.sock"


@pytest.fixture
def socket(address):
    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.bind(address)
    yield socket
    socket.close(linger=0)


def _send(socket, receiver):
    watched = WatchedSocket(socket, receiver)
    watched.send_pyobj("weights")
    return watched.recv()


@pytest.mark.parametrize(
    "how, error, message",
    [
        ("fail", NotImplementedError, "these weights cannot be loaded"),
        ("die", ray.exceptions.RayActorError, "died"),
        ("leave", RuntimeError, "returned before every weight had been sent"),
    ],
)
def test_a_receiver_that_will_not_answer_is_raised(socket, how, error, message, monkeypatch):
    monkeypatch.setattr(weight_transfer, "GRACE", 1.0)
    begun = time.monotonic()
    with pytest.raises(error, match=message):
        _send(socket, getattr(Engine.remote(), how).remote())
    assert time.monotonic() - begun < 30


def test_a_slow_receiver_is_waited_for(socket, address):
    assert _send(socket, Engine.remote().answer.remote(address, 2.5)) == b"taken"
