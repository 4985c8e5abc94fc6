"""Is this tree as fast as an earlier commit? Both run the same benchmarks in alternation, on this machine.

    python -m benchmarks.against COMMIT [--rounds 3] [--only loss]

Every benchmark writes its table; each cell with a time is compared. Printed is, for each benchmark, the median over
its cells of new / old, and how far one round of the old tree is from another of itself: a difference within that is
noise.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
# Smaller than for the figures of the documentation, so that a round takes minutes.
BENCHMARKS = {
    "loss": ["--repeats", "9"],
    "step_time": ["--rows", "32", "--repeats", "3", "--warmup", "1"],
    "hybrid_cost": ["--repeats", "4"],
    "driver_cost": ["--sizes", "10240,51200", "--repeats", "3"],
}
TIME = re.compile(r"\bs$|\bms$")


def times(page: str) -> dict[tuple[int, str, str], float]:
    """(number of the line, first cell, column) of each time in the tables -> its value; its column ends in s or ms."""
    found: dict[tuple[int, str, str], float] = {}
    columns: list[str] = []
    for number, line in enumerate(page.splitlines()):
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
        elif not set(line) <= set("|- "):
            found |= {
                (number, cells[0], column): float(cell)
                for cell, column in zip(cells, columns, strict=True)
                if TIME.search(column)
            }
    return found


def measured(tree: Path, name: str) -> dict[tuple[int, str, str], float]:
    """One run of a benchmark by this tree."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.md"
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *BENCHMARKS[name], "--output", str(page)]
        env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
        return times(page.read_text())


def ratios(one: dict[Any, float], two: dict[Any, float]) -> list[float]:
    """two / one of every time that both have."""
    return [two[key] / one[key] for key in one if key in two and one[key] > 0]


def main(
    commit: str,
    rounds: Annotated[int, typer.Option(min=2)] = 3,
    only: Annotated[str | None, typer.Option(help="Comma-separated names.")] = None,
) -> None:
    """Print new / old for each benchmark, and the old tree's difference from itself."""
    table = Table(title=f"this tree against {commit}, {rounds} rounds in alternation")
    for column in ("benchmark", "times", "new / old", "per round", "old / old"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            for name in only.split(",") if only else BENCHMARKS:
                old, new = [], []
                for number in range(rounds):
                    for place, found in ((tree, old), (ROOT, new))[:: 1 if number % 2 == 0 else -1]:
                        found.append(measured(place, name))
                        print(f"{name}, round {number + 1} of {rounds}, {place.name}", flush=True)
                each = [statistics.median(ratios(*pair)) for pair in zip(old, new, strict=True)]
                itself = [statistics.median(ratios(old[0], other)) for other in old[1:]]
                kept = {key: statistics.median(one[key] for one in old) for key in old[0]}
                now = {key: statistics.median(one[key] for one in new) for key in new[0]}
                found = ratios(kept, now)
                shown = [", ".join(f"{value:.3f}" for value in values) for values in (each, itself)]
                row = (name, str(len(found)), f"{statistics.median(found):.3f}", *shown)
                table.add_row(*row)
                print(*row, sep="; ", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
