"""Ending everything that a run has started: Ray daemons, vLLM engines and their shared memory outlive their parent.

Every descendant of a run inherits one environment variable with a value of its own, so its processes are found by that
value and not by their names, and nobody else's are touched.
"""

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

MARKER = "FGRPO_RUN_ID"
SHARED_MEMORY = Path("/dev/shm")
OURS = ("verl", "psm_", "sem.", "torch_", "ray", "plasma")  # how what Ray, vLLM, torch and verl leave there begins
GRACE_SECONDS = 10.0


def marked_processes(run_id: str) -> list[psutil.Process]:
    """Running processes whose environment holds ``FGRPO_RUN_ID=run_id``, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if process.pid != os.getpid() and not ended and process.environ().get(MARKER) == run_id:
                found.append(process)
    return found


def other_runs() -> list[psutil.Process]:
    """Running processes that carry the marker of any run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if MARKER in process.environ() and process.pid != os.getpid() and _runs(process):
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
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
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


def _family(run_id: str, known: set[psutil.Process]) -> set[psutil.Process]:
    """Marked processes, those in `known` and the descendants of both, as far as they still run.

    A process that changes its title may overwrite its environment as /proc shows it; it is then found by its parent,
    and still known once that parent is gone.
    """
    family = known | set(marked_processes(run_id))
    for process in list(family):
        with contextlib.suppress(psutil.Error):
            family.update(process.children(recursive=True))
    return {process for process in family if process.pid != os.getpid() and _runs(process)}


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def end_run(run_id: str, *, grace_seconds: float = GRACE_SECONDS) -> int:
    """End every process of a run: SIGINT, then SIGTERM, then SIGKILL.

    Args:
        run_id: value of the marker.
        grace_seconds: how long each but the last signal is given.

    Returns:
        How many processes there were.
    """
    known = _family(run_id, set())
    first = len(known)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_seconds
        for process in known:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        while known and time.monotonic() < deadline:
            time.sleep(0.1)
            known = _family(run_id, known)
        if not known:
            break
    return first


def shared_memory_segments() -> set[Path]:
    """Return what lies in the machine's shared memory now."""
    return set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()


def _in_use() -> set[str]:
    """Shared-memory files that a running process maps or holds open."""
    used: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            used.update(m.path for m in process.memory_maps() if m.path.startswith(str(SHARED_MEMORY)))
            used.update(f.path for f in process.open_files() if f.path.startswith(str(SHARED_MEMORY)))
    return used


def remove_segments(segments: set[Path]) -> list[Path]:
    """Remove those of the given files that bear a name as a run makes it, are ours, and are used by no process."""
    removed = []
    segments = {segment for segment in segments if segment.name.startswith(OURS)}
    used = _in_use() if segments else set()
    for segment in sorted(segments):
        with contextlib.suppress(OSError):
            if segment.is_file() and segment.stat().st_uid == os.getuid() and str(segment) not in used:
                segment.unlink()
                removed.append(segment)
    return removed


@contextlib.contextmanager
def cleaned_up(run_id: str, ray_folder: Path) -> Iterator[None]:
    """However the block ends, end the run's processes and remove its shared memory and Ray's temporary folder."""
    before = shared_memory_segments()
    try:
        yield
    finally:
        # A second Ctrl-C must not leave half of them behind.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            end_run(run_id)
            remove_segments(shared_memory_segments() - before)
            shutil.rmtree(ray_folder, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, previous)
