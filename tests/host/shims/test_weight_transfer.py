"""A transfer of weights whose receiver fails, dies or leaves too early ends with the cause."""

import asyncio
import os
import threading
import time
import types
import uuid
from concurrent.futures import Future

import pytest
import ray
import zmq
from omegaconf import OmegaConf
from verl.workers.rollout.vllm_rollout import vllm_rollout as host

from fgrpo_plugin.host.shims import weight_transfer
from fgrpo_plugin.processes import MARKER


class Call:
    """What Ray gives for a call: verl awaits it, and it has a future."""

    def __init__(self):
        self._future = Future()

    def future(self):
        return self._future

    def __await__(self):
        return asyncio.wrap_future(self._future).__await__()


async def _nothing():
    return None


@pytest.fixture
def adapter(monkeypatch):
    """verl's own, on a rank that serves an engine, whose next call is `adapter.call`."""
    monkeypatch.setattr(weight_transfer, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(weight_transfer, "GRACE", 90.0)
    monkeypatch.delenv(MARKER, raising=False)  # the address of a run has its marker at the end
    adapter = host.ServerAdapter.__new__(host.ServerAdapter)
    adapter.config = OmegaConf.create({"checkpoint_engine": {"update_weights_bucket_megabytes": 1}})
    adapter.zmq_handle = f"ipc:///tmp/fgrpo-test-{uuid.uuid4().hex[:12]}.sock"
    adapter.use_shm = adapter._has_server = True
    adapter.replica_rank, adapter.rollout_rank = 0, 1
    adapter.call = Call()
    adapter.server_handle = types.SimpleNamespace(
        collective_rpc=types.SimpleNamespace(remote=lambda *_, **__: adapter.call),
        clear_kv_cache=types.SimpleNamespace(remote=_nothing),
    )
    return adapter


def _run(work):
    """In a thread, for at most a minute: nothing cancels a wait on the socket."""
    done = Future()

    def run():
        try:
            done.set_result(asyncio.run(work))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(60)


def _update(adapter):
    _run(adapter.update_weights(iter(())))


def _answer(adapter, after: float, error=None):
    """Acknowledge the buffer and the one bucket, each `after` seconds after it has come, and return; or raise there."""

    def receive():
        call = adapter.call.future()
        with zmq.Context.instance().socket(zmq.REP) as socket:
            socket.connect(adapter.zmq_handle)
            socket.recv_pyobj()
            time.sleep(after)
            socket.send(b"")
            socket.recv_pyobj()
            time.sleep(after)
            if error is not None:
                call.set_exception(error)
                time.sleep(1)  # the process lives on, and holds the connection
                return
            socket.send(b"")
        if not call.done():
            call.set_result(None)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("error", [NotImplementedError("these weights"), ray.exceptions.RayActorError()])
def test_what_the_receiver_raised_ends_the_transfer(adapter, error):
    adapter.call.future().set_exception(error)
    with pytest.raises(type(error)) as raised:
        _update(adapter)
    assert raised.value is error
    assert not os.path.exists(adapter.zmq_handle.removeprefix("ipc://"))


def test_a_receiver_that_fails_after_an_answer_is_raised(adapter):
    _answer(adapter, 0, MemoryError("here"))
    with pytest.raises(MemoryError, match="here"):
        _update(adapter)


def test_a_receiver_that_left_before_the_end_is_raised_after_the_grace(adapter, monkeypatch):
    monkeypatch.setattr(weight_transfer, "GRACE", 0.5)
    adapter.call.future().set_result(None)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="returned before every weight had been sent"):
        _update(adapter)
    assert time.monotonic() - begun >= weight_transfer.GRACE


def test_a_slow_receiver_is_waited_for(adapter):
    thread = _answer(adapter, 0.3)
    _update(adapter)
    thread.join(60)


def test_an_answer_under_way_when_the_call_has_returned_is_taken(adapter):
    adapter.call.future().set_result(None)
    _answer(adapter, 0.5)
    _update(adapter)


def test_a_rank_that_serves_no_engine_does_not_look_at_the_call_of_an_earlier_transfer(adapter):
    thread = _answer(adapter, 0)

    async def twice():
        await adapter.update_weights(iter(()))
        thread.join(60)
        adapter._has_server = False
        await adapter._execute_method("update_verl_delta_weights", non_block=True)
        sender = host.BucketedWeightSender(adapter.zmq_handle, 1, use_shm=True)
        sender._init_socket()
        socket = sender.socket
        sender._cleanup()
        return socket

    assert not isinstance(_run(twice()), weight_transfer.WatchedSocket)


def test_what_nobody_fetches_does_not_keep_the_process():
    context = zmq.Context()
    socket = weight_transfer.WatchedSocket(context.socket(zmq.DEALER), Future())
    socket.connect(f"ipc:///tmp/fgrpo-test-{uuid.uuid4().hex[:12]}.sock")  # where nobody listens
    socket.send_pyobj("weights")
    socket.close()
    closing = threading.Thread(target=context.term, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def _rollout(sender):
    return types.SimpleNamespace(BucketedWeightSender=sender, ServerAdapter=host.ServerAdapter)


def test_verl_with_the_patch_is_left_alone():
    class Sender:
        def __init__(self, zmq_handle, receiver=None): ...

        def _init_socket(self): ...

    before = Sender._init_socket
    assert weight_transfer.apply(_rollout(Sender)) is False
    assert Sender._init_socket is before


def test_an_unknown_sender_is_refused_and_left_alone():
    class Sender:
        def _init_socket(self): ...

    before = Sender._init_socket
    with pytest.raises(RuntimeError, match=r"BucketedWeightSender of the installed verl .* apply 0005-failed-weight"):
        weight_transfer.apply(_rollout(Sender))
    assert Sender._init_socket is before


@pytest.fixture(scope="module")
def real_ray(tmp_path_factory):
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(tmp_path_factory.mktemp("r")))
    yield
    ray.shutdown()


@pytest.mark.parametrize("how, error", [("fail", NotImplementedError), ("die", ray.exceptions.RayActorError)])
def test_the_call_of_a_ray_actor_tells_what_it_raised_and_that_it_died(real_ray, adapter, how, error):
    @ray.remote(num_cpus=0)
    class Engine:
        def fail(self):
            raise NotImplementedError("these weights cannot be loaded")

        def die(self):
            os._exit(1)

    adapter.call = getattr(Engine.remote(), how).remote()
    with pytest.raises(error):
        _update(adapter)
