"""The tests that a change is looked over with: those of the suite that cost least, in two minutes.

    python tests/quick.py run                # used by `make check`
    python tests/quick.py record             # measures every file anew: durations.json

The mathematics first, then files of tests from the cheapest on, while the recorded seconds add up to less than
`BUDGET`; a file that has not been recorded yet is taken, one that starts all of verl (tests/e2e) or is marked long
never is. What is left out is listed.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
DURATIONS = ROOT / "tests" / "durations.json"
BUDGET = 90.0
"""Seconds of tests alone, recorded on two idle cores; lint and types come on top."""
MATHEMATICS = (
    "tests/losses/",
    *(f"tests/test_{name}.py" for name in ("advantages", "divergences", "presets", "theory")),
)
PYTEST = [sys.executable, "-m", "pytest", "-m", "not long and not e2e", "-p", "no:cacheprovider"]


def test_files() -> list[str]:
    """Every file of tests but those that start all of verl, relative to the repository."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "e2e" not in file.parts]


def chosen(files: list[str], seconds: dict[str, float], budget: float = BUDGET) -> tuple[list[str], list[str]]:
    """(files that are run, files that are left out): the mathematics, then the cheapest first."""
    taken, left, total = [], [], 0.0
    for file in sorted(files, key=lambda file: (not file.startswith(MATHEMATICS), seconds.get(file, 0.0))):
        total += seconds.get(file, 0.0)
        (taken if total <= budget else left).append(file)
    return taken, left


app = typer.Typer(add_completion=False)


@app.command()
def record() -> None:
    """Run every file and write what each took, set-up and fixtures with it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run([*PYTEST, "-q", f"--junitxml={report}", *test_files()], cwd=ROOT)
        seconds: Counter[str] = Counter()
        for case in ElementTree.parse(report).iter("testcase"):
            parts = case.attrib["classname"].split(".")
            seconds["/".join(parts) + ".py"] += float(case.attrib["time"])
    DURATIONS.write_text(json.dumps({file: round(seconds[file], 1) for file in sorted(seconds)}, indent=1) + "\n")
    raise SystemExit(done.returncode)


@app.command()
def run() -> None:
    """Run what fits into the budget, and list what does not."""
    seconds = json.loads(DURATIONS.read_text())
    taken, left = chosen(test_files(), seconds)
    print(f"left out, {len(left)} files of {len(left) + len(taken)}, and tests/e2e (make test runs them):", flush=True)
    print("".join(f"  {seconds[file]:6.1f} s  {file}\n" for file in left), end="", flush=True)
    raise SystemExit(subprocess.run([*PYTEST, "-q", *taken], cwd=ROOT).returncode)


if __name__ == "__main__":
    app()
