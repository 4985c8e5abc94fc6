"""A quick start by itself on the machine, and nothing left of it however it ends."""

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fgrpo_plugin.leftovers import short_lived_since
from fgrpo_plugin.processes import MARKER, end_run, family, remove_segments, runs, segments_of


def other_runs() -> list[psutil.Process]:
    """Running processes that carry the marker of any run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if MARKER in process.environ() and process.pid != os.getpid() and runs(process):
                found.append(process)
    return found


@contextlib.contextmanager
def only_run() -> Iterator[bool]:
    """Hold a machine-wide lock until the block ends; yields False if another quick start runs.

    A file in the temporary folder is locked, not merely written: the lock goes with the process that holds it.
    """
    lock = Path(tempfile.gettempdir()) / "fgrpo-quickstart.lock"
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError:  # another user's, who may lock it and does not let us
            yield not other_runs()
            return
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield not other_runs()


@contextlib.contextmanager
def cleaned_up(run_id: str, ray_folder: Path) -> Iterator[None]:
    """However the block ends, end the run's processes and remove its shared memory and Ray's temporary folder.

    What processes had that ended before the block did, the watch removes once this command has ended.
    """
    began = time.time() - 1  # a file's time is coarser than the clock's
    try:
        yield
    finally:
        # A second Ctrl-C must not leave half of them behind.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            segments = segments_of(family(run_id, set()))
            end_run(run_id)
            remove_segments(segments | short_lived_since(began))
            shutil.rmtree(ray_folder, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, previous)
