"""Write tests/last_release/<release> anew, by that release's own code: python -m tests.last_release.make

The release has no tag: it is the commit whose CHANGELOG.md was the first with its section.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RELEASE, COMMIT = "0.2.0", "32b713262fbd010b393cee1d1b1a7e8b5c2d6251"
FIXTURE = HERE / f"release_{RELEASE.replace('.', '_')}"


def make(target: Path = FIXTURE) -> None:
    """Unpack the release, and let it write what `write.py` asks it for."""
    with tempfile.TemporaryDirectory() as temporary:
        tree, made = Path(temporary) / "tree", Path(temporary) / FIXTURE.name
        tree.mkdir()
        made.mkdir()
        archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
        env = {**os.environ, "PYTHONPATH": str(tree), "VERL_PLATFORM": "cpu"}
        subprocess.run([sys.executable, "-W", "ignore", HERE / "write.py", str(made)], cwd=tree, env=env, check=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)


if __name__ == "__main__":
    make()
