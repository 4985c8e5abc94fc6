"""Ending everything that a run has started: Ray daemons, vLLM engines and their shared memory outlive their parent.

Every descendant of a run inherits one environment variable with a value of its own, so its processes are found by that
value and not by their names, and nobody else's are touched.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
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


def family(run_id: str, known: set[psutil.Process]) -> set[psutil.Process]:
    """Marked processes, those in `known` and the descendants of both, as far as they still run.

    A process that changes its title may overwrite its environment as /proc shows it; it is then found by its parent,
    and still known once that parent is gone.
    """
    family = known | set(marked_processes(run_id))
    for process in list(family):
        with contextlib.suppress(psutil.Error):
            family.update(process.children(recursive=True))
    return {process for process in family if process.pid != os.getpid() and runs(process)}


def runs(process: psutil.Process) -> bool:
    """Return whether a process has not ended."""
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
    known = family(run_id, set())
    first = len(known)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_seconds
        for process in known:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        while known and time.monotonic() < deadline:
            time.sleep(0.1)
            known = family(run_id, known)
        if not known:
            break
    return first


def shared_memory_segments() -> set[Path]:
    """Return what lies in the machine's shared memory now."""
    return set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()


def segments_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """Return which files of the machine's shared memory some processes map or hold open."""
    found: set[str] = set()
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            # Not psutil's maps, which has the kernel count every page of a process.
            maps = Path(f"/proc/{process.pid}/maps").read_text(errors="surrogateescape")
            found.update(line.split(maxsplit=5)[5] for line in maps.splitlines() if str(SHARED_MEMORY) in line)
            found.update(file.path for file in process.open_files() if file.path.startswith(str(SHARED_MEMORY)))
    return {path for name in found if (path := Path(name)).parent == SHARED_MEMORY and path.exists()}


def remove_segments(segments: set[Path]) -> list[Path]:
    """Remove those of the given files that bear a name as a run makes it, are ours, and are used by no process."""
    removed = []
    segments = {segment for segment in segments if segment.name.startswith(OURS)}
    used = segments_of(psutil.process_iter()) if segments else set()
    for segment in sorted(segments):
        with contextlib.suppress(OSError):
            if segment.is_file() and segment.stat().st_uid == os.getuid() and segment not in used:
                segment.unlink()
                removed.append(segment)
    return removed
