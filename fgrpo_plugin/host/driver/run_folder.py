"""One run at a time writes checkpoints to a folder: two would write over each other's files, and a checkpoint could
hold the weights of one and the optimiser of the other."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

LOCK = ".f_divergence_lock"
"""In trainer.default_local_dir; the lock, not the file, says that a run is there, and ends with the run's process."""
PATIENCE = 60.0
"""Seconds in which a run that was killed may still be ending (docs/reliability.md)."""


def hold(folder: Path, patience: float = PATIENCE) -> int | None:
    """Lock a run's folder for as long as this process lives, and opens and closes the file nowhere else.

    Args:
        folder: trainer.default_local_dir.
        patience: seconds to wait for another run's end.

    Returns:
        The open file, whose closing ends the lock; None on a disk that cannot be written to or has no locks.

    Raises:
        ValueError: another run holds it; says where that one runs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: what it forks does not hold it
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(file)
                return None
        if time.monotonic() > deadline:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise ValueError(
                f"trainer.default_local_dir={folder}: another run writes its checkpoints there ({holder}); wait for "
                "its end, or give this run a folder of its own."
            )
        time.sleep(min(1.0, patience))
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file
