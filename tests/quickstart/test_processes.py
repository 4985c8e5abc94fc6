"""Whatever a run has started is found by its marker and ended; nothing else is."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from fgrpo_plugin.quickstart.options import QuickstartError, QuickstartOptions
from fgrpo_plugin.quickstart.processes import (
    MARKER,
    cleaned_up,
    end_run,
    marked_processes,
    only_run,
    remove_segments,
    shared_memory_segments,
)
from fgrpo_plugin.quickstart.run import run_quickstart

# A parent with a child in a session of its own, as Ray's daemons are, which ignores the polite signals.
TREE = """
import subprocess, sys, time
stubborn = "import signal as s, time; [s.signal(n, s.SIG_IGN) for n in (2, 15)]; print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print("up", flush=True)
time.sleep(60)
"""


def _start(run_id: str) -> subprocess.Popen:
    env = {**os.environ, MARKER: run_id}
    process = subprocess.Popen([sys.executable, "-c", TREE], env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    return process


def test_a_tree_of_processes_ends_and_another_runs_tree_does_not():
    ours, other = uuid.uuid4().hex, uuid.uuid4().hex
    first, second = _start(ours), _start(other)
    try:
        assert len(marked_processes(ours)) == len(marked_processes(other)) == 2
        assert end_run(ours, grace_seconds=0.5) == 2
        assert marked_processes(ours) == []
        assert len(marked_processes(other)) == 2
    finally:
        end_run(other, grace_seconds=0.2)
        first.wait()
        second.wait()


def test_a_second_quick_start_is_refused_before_the_first_has_started_its_host(tmp_path):
    with only_run() as first:
        assert first
        with pytest.raises(QuickstartError, match="another quick start is running"):
            run_quickstart(QuickstartOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with only_run() as again:
        assert again


def test_a_second_quick_start_is_refused_while_one_runs(tmp_path):
    run_id = uuid.uuid4().hex
    process = _start(run_id)
    try:
        with pytest.raises(QuickstartError, match="another quick start is running"):
            run_quickstart(QuickstartOptions(run_dir=tmp_path / "run"))
    finally:
        end_run(run_id, grace_seconds=0.2)
        process.wait()
    assert not (tmp_path / "run").exists()


def test_a_descendant_that_lost_the_marker_ends_too():
    """As a process does that overwrites its environment with its title: it is found by its parent, and remembered."""
    run_id = uuid.uuid4().hex
    unmarked = TREE.replace("start_new_session=True", "start_new_session=True, env={}")
    process = subprocess.Popen(
        [sys.executable, "-c", unmarked], env={**os.environ, MARKER: run_id}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    (child,) = psutil.Process(process.pid).children()
    assert [p.pid for p in marked_processes(run_id)] == [process.pid]
    assert end_run(run_id, grace_seconds=0.5) == 2
    process.wait()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_cleaning_up_happens_after_an_interrupt_too(tmp_path):
    run_id = uuid.uuid4().hex
    folder = tmp_path / "ray"
    folder.mkdir()
    name = Path("/dev/shm") / f"verl_test_{run_id}"
    with pytest.raises(KeyboardInterrupt), cleaned_up(run_id, folder):
        process = _start(run_id)
        name.write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    process.wait()
    assert marked_processes(run_id) == []
    assert not folder.exists() and not name.exists()


def test_a_segment_in_use_stays(tmp_path):
    name = Path("/dev/shm") / f"psm_{uuid.uuid4().hex}"
    before = shared_memory_segments()
    with name.open("wb") as held:
        assert remove_segments(shared_memory_segments() - before) == []
        held.write(b"x")
    assert name in remove_segments({name})
    assert not name.exists()


def test_what_a_run_does_not_make_stays():
    data, folder = (Path("/dev/shm") / f"{kind}-{uuid.uuid4().hex}" for kind in ("mydata", "psm_folder"))
    data.write_bytes(b"x")
    folder.mkdir()
    try:
        assert remove_segments({data, folder}) == []
        assert data.exists() and folder.exists()
    finally:
        data.unlink()
        folder.rmdir()
