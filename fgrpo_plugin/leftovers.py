"""Waits beside a run for its end, then ends what has outlived it and removes what it has left in shared memory.

A run that is killed cannot clean up after itself, and Ray ends its workers without giving them the time to: vLLM's
engines and buffers of some 100 MB stay behind. Started before Ray by `python -m fgrpo_plugin.leftovers`; on the machine
of the run's command alone. Workers of a Ray cluster that was there before belong to that cluster, which ends them.
"""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

from fgrpo_plugin.processes import MARKER, end_run, family, remove_segments, runs, segments_of, shared_memory_segments

EVERY_SECONDS = 5.0
"""Between two looks at what the run's processes have in shared memory."""
GRACE_SECONDS = 20.0
"""In which what the run has started may end by itself; then it is ended."""


def watch_for(pid: int, run_id: str) -> None:
    """Start the watch beside a run, in a session of its own; nothing where there is no /proc.

    Args:
        pid: of the process with whose end the run ends.
        run_id: value of the marker that what it starts carries.
    """
    if not Path("/proc").is_dir():
        return
    nothing = subprocess.DEVNULL  # a pipe that it kept open would keep whoever reads it waiting
    subprocess.Popen(
        [sys.executable, "-m", "fgrpo_plugin.leftovers", str(pid), run_id],
        env={name: value for name, value in os.environ.items() if name != MARKER},
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,
    )


def mark_this_process() -> str:
    """Give what this process starts from now on the marker of a run, unless it has one; return its value."""
    # Ray and vLLM change their processes' titles, which else overwrites the environment that holds the marker.
    os.environ.setdefault("SPT_NOENV", "1")
    return os.environ.setdefault(MARKER, uuid.uuid4().hex)


def clean_up_after(pid: int, run_id: str, every: float = EVERY_SECONDS, grace: float = GRACE_SECONDS) -> None:
    """Wait for the end of a process, and clean up.

    Args:
        pid: of the process.
        run_id: value of the marker that what it has started carries.
        every: seconds between two looks.
        grace: seconds after its end in which nothing is ended.
    """
    known: set[psutil.Process] = set()
    segments: set[Path] = set()
    began = time.time() - every  # it takes a moment from the run's start to here
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # Not until it is gone: where nobody asks how it ended, as in a container without an init, it stays in the list.
        while runs(process):
            known = family(run_id, known)
            segments |= segments_of(known)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(timeout=every)
                break
    deadline = time.monotonic() + grace
    while (known := family(run_id, known)) and time.monotonic() < deadline:
        segments |= segments_of(known)
        time.sleep(0.5)
    end_run(run_id)
    remove_segments(segments | short_lived_since(began))


def short_lived_since(began: float) -> set[Path]:
    """Return what is used for a moment at a time, between two looks: verl's buffers of weights, Python's semaphores.

    Args:
        began: Unix time; older ones are left out.
    """
    found = set()
    for segment in shared_memory_segments():
        with contextlib.suppress(OSError):
            if segment.name.startswith(("verl_weights", "sem.mp-")) and segment.stat().st_mtime >= began:
                found.add(segment)
    return found


if __name__ == "__main__":
    clean_up_after(int(sys.argv[1]), sys.argv[2])
