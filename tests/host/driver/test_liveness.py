"""A part that dies ends the run, whatever the driver waits for; real actors of a small Ray."""

import os
import signal
import threading
import time

import pytest
import ray

from fgrpo_plugin.host.driver import liveness
from fgrpo_plugin.host.driver.liveness import PartDied, require_living, watching


@ray.remote(num_cpus=0)
class Part:
    def pid(self) -> int:
        return os.getpid()

    def work(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module", autouse=True)
def small_ray(tmp_path_factory):
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(tmp_path_factory.mktemp("r")))
    yield
    ray.shutdown()


@pytest.mark.parametrize("wait", ["sleep", "get"])
def test_a_death_is_raised_from_whatever_the_driver_waits_for(wait):
    dies, lives = Part.remote(), Part.remote()
    pid = ray.get(dies.pid.remote())
    ray.get(lives.pid.remote())
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    begun = time.monotonic()
    with (
        pytest.raises(PartDied, match="rollout server 0 has died, and the run ends here"),
        watching({"actor worker 0": lives, "rollout server 0": dies}, every=0.2),
    ):
        if wait == "sleep":
            time.sleep(60)
        else:
            ray.get(lives.work.remote(60))
    assert time.monotonic() - begun < 30


def test_parts_that_answer_at_once_do_not_hide_one_that_is_dead(monkeypatch):
    living, dead = [Part.remote() for _ in range(3)], Part.remote()
    ray.get([part.pid.remote() for part in living])
    os.kill(ray.get(dead.pid.remote()), signal.SIGKILL)
    rounds, wait, done = [], ray.wait, threading.Event()

    def all_have_answered_before(calls, **settings):
        ready, rest = wait(calls, num_returns=len(calls), timeout=20)
        assert len(calls) == 4 and not rest
        rounds.append(ready)
        if len(rounds) > 3:
            done.set()
        return wait(calls, **settings)

    monkeypatch.setattr(ray, "wait", all_have_answered_before)
    parts = {f"actor worker {i}": part for i, part in enumerate(living)} | {"rollout server 0": dead}
    assert "rollout server 0 has died" in liveness._first_death(parts, 0.5, done)
    assert len(rounds) == 1


def test_a_watch_that_fails_says_so_and_the_run_goes_on(monkeypatch, capsys):
    def fail(*given, **more):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(liveness, "_first_death", fail)
    with watching({"actor worker 0": Part.remote()}):
        time.sleep(1)
    assert "the watch over the run's parts has ended (ZeroDivisionError('planted'))" in capsys.readouterr().err


def test_a_part_that_is_busy_or_of_a_run_that_has_ended_is_no_death():
    busy = Part.remote()
    pid = ray.get(busy.pid.remote())
    before = signal.getsignal(signal.SIGUSR2)
    work = busy.work.remote(2)
    with watching({"actor worker 0": busy}, every=0.2):
        ray.get(work)
        time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    assert signal.getsignal(signal.SIGUSR2) == before


def test_an_error_that_a_death_has_caused_is_told_from_one_that_none_has():
    lives, dead = Part.remote(), Part.remote()
    pid = ray.get(dead.pid.remote())
    with pytest.raises(ZeroDivisionError), watching({"actor worker 0": lives, "agent loop worker 0": dead}, every=60):
        raise ZeroDivisionError
    with (
        pytest.raises(PartDied, match="agent loop worker 0 has died") as raised,
        watching({"actor worker 0": lives, "agent loop worker 0": dead}, every=60),
    ):
        os.kill(pid, signal.SIGKILL)
        raise RuntimeError("eight prompts failed")
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_step_that_lacks_what_a_dead_part_would_have_made_ends_before_the_watch_looks(capsys):
    lives, busy, dead = Part.remote(), Part.remote(), Part.remote()
    pid = ray.get(dead.pid.remote())
    ray.get([part.pid.remote() for part in (lives, busy)])
    busy.work.remote(10)
    parts = {"actor worker 0": lives, "queue storage 0": busy, "reward loop worker 0": dead}
    begun = time.monotonic()
    require_living(parts)
    assert liveness.LOOK <= time.monotonic() - begun < 3 * liveness.LOOK
    with (
        pytest.raises(PartDied, match="reward loop worker 0 has died, and the run ends here"),
        watching(parts, every=60),
    ):
        os.kill(pid, signal.SIGKILL)
        require_living(parts)
    assert capsys.readouterr().err.count("reward loop worker 0 has died") == 1


def test_a_watch_that_sees_the_death_while_an_error_is_on_its_way_does_not_cut_it_short():
    for _ in range(3):
        dead = Part.remote()
        pid = ray.get(dead.pid.remote())
        with pytest.raises(PartDied), watching({"rollout server 0": dead}, every=0.05):
            os.kill(pid, signal.SIGKILL)
            raise RuntimeError("eight prompts failed")


def test_a_death_that_is_seen_as_the_run_ends_sends_no_signal_afterwards(monkeypatch):
    seen, late = threading.Event(), []

    def first_death(*given, **more):
        seen.set()
        return "actor worker 0 has died"

    monkeypatch.setattr(liveness, "_first_death", first_death)
    monkeypatch.setattr(liveness, "_say", lambda message: time.sleep(0.5))
    before = signal.signal(signal.SIGUSR2, lambda *given: late.append(given))  # by default it would end the process
    try:
        with watching({}):
            seen.wait()
        time.sleep(1.0)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not late
