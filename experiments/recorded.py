"""Results of long runs, each kept and committed as soon as it is there, so that a stopped series goes on."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.intervals import Measure

ROOT = Path(__file__).parents[1]


def read(file: Path) -> dict[str, Any]:
    """Every finished run of a file, by its name."""
    return json.loads(file.read_text()) if file.is_file() else {}


def record(file: Path, name: str, result: dict[str, Any], measured: str) -> None:
    """Keep a run's result beside the others, one line each; `measured` is the commit that it was made from."""
    results = read(file) | {name: result | {"commit": measured, "date": str(date.today()), "hardware": hardware()}}
    lines = [f"{json.dumps(key)}: {json.dumps(results[key])}" for key in sorted(results)]
    write_whole(file, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def paired_gain(runs: Sequence[Mapping[str, Any]]) -> Measure:
    """Right after minus right before of each held-out problem, averaged over seeds; the interval is over problems.

    Args:
        runs: of one arm, each with `right`: a line of 0 and 1, one a problem, `before` and `after` training.
    """
    gains = [
        [int(after) - int(before) for before, after in zip(run["right"]["before"], run["right"]["after"], strict=True)]
        for run in runs
    ]
    return Measure.of([statistics.fmean(values) for values in zip(*gains, strict=True)])


def commit() -> str:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def save(message: str, changed: Sequence[str]) -> None:
    """Commit what a run has changed, by paths from the repository's root."""
    subprocess.run(["git", "add", *changed], cwd=ROOT, check=True)
    subprocess.run(["git", "commit", "-qm", message, "--", *changed], cwd=ROOT, check=True)


def hardware() -> str:
    """What the figures were measured on."""
    return f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), no GPU"
