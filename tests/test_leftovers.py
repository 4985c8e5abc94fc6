"""What a killed run leaves is ended and removed by the watch that was started beside it."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from fgrpo_plugin.leftovers import clean_up_after, mark_this_process, watch_for
from fgrpo_plugin.processes import MARKER, marked_processes, runs

WORKER = """
import mmap, signal, sys, time
[signal.signal(number, signal.SIG_IGN) for number in (2, 15)]
with open(sys.argv[1], "r+b") as file:
    kept = mmap.mmap(file.fileno(), 4096)
print("up", flush=True)
time.sleep(120)
"""
# The command of a run, with a worker in a session of its own that holds a buffer and ends at no polite signal.
RUN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(120)
"""


@pytest.fixture
def buffers():
    """A buffer that the run uses, one of somebody else's, and verl's weights of this run and of an older one."""
    names = [f"{kind}_{uuid.uuid4().hex}" for kind in ("psm", "psm", "verl_weights", "verl_weights", "sem.mp-")]
    made = [Path("/dev/shm") / name for name in names]
    for name in made:
        name.write_bytes(b"x" * 4096)
    os.utime(made[3], (time.time() - 1000,) * 2)
    yield made
    for name in made:
        name.unlink(missing_ok=True)


def start(buffer, run_id):
    command = [sys.executable, "-c", RUN, WORKER, str(buffer)]
    process = subprocess.Popen(command, env={**os.environ, MARKER: run_id}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, psutil.Process(int(process.stdout.readline()))


def watches(run_id):
    return [found for found in psutil.process_iter(["cmdline"]) if run_id in (found.info["cmdline"] or ())]


def test_after_a_kill_its_workers_end_and_its_buffers_go_and_nothing_else(buffers):
    run_id = uuid.uuid4().hex
    process, worker = start(buffers[0], run_id)
    watch_for(process.pid, run_id)
    (watch,) = watches(run_id)
    time.sleep(3)
    assert MARKER not in watch.environ()  # it is none of the run
    assert runs(worker) and buffers[0].exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while (marked_processes(run_id) or buffers[0].exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked_processes(run_id) == [] and not runs(worker)
    assert [name.exists() for name in buffers] == [False, True, False, True, False]


def test_a_command_whose_end_nobody_asks_for_has_ended_all_the_same(buffers):
    """In a container without an init it stays in the list of processes, as long as the container lives."""
    run_id = uuid.uuid4().hex
    process, worker = start(buffers[0], run_id)
    watch_for(process.pid, run_id)
    time.sleep(3)
    process.kill()
    deadline = time.monotonic() + 60
    while (runs(worker) or buffers[0].exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    ended = runs(worker), buffers[0].exists()
    process.wait()
    assert ended == (False, False) and buffers[1].exists()


def test_what_ends_by_itself_in_time_is_left_to_itself(buffers):
    run_id = uuid.uuid4().hex
    process, worker = start(buffers[0], run_id)
    process.kill()
    process.wait()
    began = time.monotonic()
    for name in (buffers[2], buffers[4]):  # of this run, however long its start has taken
        os.utime(name)
    later = subprocess.Popen(["sh", "-c", f"sleep 8; kill -9 {worker.pid}"])
    clean_up_after(process.pid, run_id, every=0.2, grace=30.0)  # the command had ended before the watch began
    assert time.monotonic() - began < 25
    later.wait()
    assert not runs(worker) and [name.exists() for name in buffers] == [False, True, False, True, False]


def test_a_process_keeps_the_marker_that_it_has(monkeypatch):
    monkeypatch.setenv(MARKER, "mine")
    monkeypatch.delenv("SPT_NOENV", raising=False)
    assert mark_this_process() == "mine" and os.environ["SPT_NOENV"] == "1"
    monkeypatch.delenv(MARKER)
    given = mark_this_process()
    assert os.environ[MARKER] == given == mark_this_process() and len(given) == 32
