"""Whatever a run has started is found by its marker and ended; nothing else is."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

from fgrpo_plugin.processes import (
    MARKER,
    end_run,
    marked_processes,
    remove_segments,
    segments_of,
    shared_memory_segments,
)
from tests.support.marked_tree import TREE, start_tree


def test_a_tree_of_processes_ends_and_another_runs_tree_does_not():
    ours, other = uuid.uuid4().hex, uuid.uuid4().hex
    first, second = start_tree(ours), start_tree(other)
    try:
        assert len(marked_processes(ours)) == len(marked_processes(other)) == 2
        assert end_run(ours, grace_seconds=0.5) == 2
        assert marked_processes(ours) == []
        assert len(marked_processes(other)) == 2
    finally:
        end_run(other, grace_seconds=0.2)
        first.wait()
        second.wait()


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


def test_what_a_process_maps_or_holds_open_is_its_own(tmp_path):
    mapped, held, other = (Path("/dev/shm") / f"psm_{kind}_{uuid.uuid4().hex}" for kind in ("mapped", "held", "other"))
    for name in (mapped, held, other):
        name.write_bytes(b"x" * 4096)
    code = f"""
import mmap, time
with open({str(mapped)!r}, "r+b") as file:
    kept = mmap.mmap(file.fileno(), 4096)
held = open({str(held)!r}, "rb")
print("up", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert segments_of([psutil.Process(process.pid)]) == {mapped, held}
        assert remove_segments({mapped, held, other}) == [other]
    finally:
        process.kill()
        process.wait()
    assert set(remove_segments({mapped, held})) == {mapped, held}
