"""A process with a descendant that does not end by itself, both with the marker of a run."""

import os
import subprocess
import sys
from pathlib import Path

from fgrpo_plugin.processes import MARKER

# A parent with a child in a session of its own, as Ray's daemons are, which ignores the polite signals.
TREE = """
import subprocess, sys, time
stubborn = "import signal as s, time; [s.signal(n, s.SIG_IGN) for n in (2, 15)]; print(1, flush=True); time.sleep(60)"
held = [open(name, "rb") for name in sys.argv[1:]]
child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print("up", flush=True)
time.sleep(60)
"""


def start_tree(run_id: str, *held: Path) -> subprocess.Popen:
    """Start both, and return the parent, which holds the files open."""
    env = {**os.environ, MARKER: run_id}
    process = subprocess.Popen([sys.executable, "-c", TREE, *map(str, held)], env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    return process
