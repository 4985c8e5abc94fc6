"""A fresh interpreter without the entry point."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(code: str, **env: str) -> str:
    """Run `code` in a fresh interpreter without the plugin's entry point and return what it prints last."""
    base = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=base | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]
