"""Every quick-start figure of the documentation: three divergences and GRPO on three seeds each, and a control.

    python benchmarks/quickstart.py [--folder runs/matrix] [--only pearson,kl] [--report-only]

Runs that are complete in the folder are kept, so an interrupted matrix goes on where it stopped. Writes
docs/quickstart.md, docs/figures/quickstart.png and the table in README.md.
"""

import json
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fgrpo_plugin.quickstart.run import QuickstartOptions, run_quickstart
from fgrpo_plugin.quickstart.summary import draw

ROOT = Path(__file__).parents[1]
DIVERGENCES = ("pearson", "jensen_shannon", "kl")
SEEDS = (0, 1, 2)
CONTROL_STEPS = 25


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    name: str
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.name}-seed{self.seed}"

    def options(self, run_dir: Path, model: Path | None) -> QuickstartOptions:
        """What `make quickstart` would be given."""
        control = self.name == "control"
        return QuickstartOptions(
            algo="grpo" if self.name == "grpo" else "f_grpo",
            divergence="pearson" if self.name in ("grpo", "control") else self.name,
            seed=self.seed,
            run_dir=run_dir,
            model=model,
            learning_rate=0.0 if control else None,
            steps=CONTROL_STEPS if control else None,
        )


def cells() -> list[Cell]:
    """All runs, in the order in which they are made."""
    trained = [Cell(name, seed) for name in (*DIVERGENCES, "grpo") for seed in SEEDS]
    return [*trained[: len(DIVERGENCES) * len(SEEDS)], Cell("control", 0), *trained[len(DIVERGENCES) * len(SEEDS) :]]


def run_matrix(folder: Path, wanted: Iterable[Cell], console: Console) -> dict[Cell, dict]:
    """Make the missing runs, one at a time, and return every summary.

    The warmed-up model depends on the seed alone, so each seed's first run makes it and the others take it as MODEL.
    """
    summaries = {}
    for cell in wanted:
        run = folder / cell.folder
        summary = run / "summary.json"
        if not summary.is_file():
            if run.exists():  # an interrupted run
                run.rename(folder / f"{cell.folder}.incomplete-{len(list(folder.iterdir()))}")
            model = folder / f"{DIVERGENCES[0]}-seed{cell.seed}" / "model"
            run_quickstart(cell.options(run, model if model.is_dir() and model.parent != run else None), console)
        summaries[cell] = json.loads(summary.read_text())
    return summaries


def main(
    folder: Path = ROOT / "runs" / "matrix",
    report_only: Annotated[bool, typer.Option("--report-only", help="Use the runs that are there.")] = False,
    only: Annotated[str, typer.Option(help="Names to run, with commas between, and no report.")] = "",
) -> None:
    """Make the runs and the documents."""
    console = Console()
    if only:
        run_matrix(folder, [cell for cell in cells() if cell.name in only.split(",")], console)
        return
    wanted = [cell for cell in cells() if not report_only or (folder / cell.folder / "summary.json").is_file()]
    write_report(folder, run_matrix(folder, wanted, console))


def write_report(folder: Path, summaries: dict[Cell, dict]) -> None:
    """docs/quickstart.md, the picture, and the README's table."""
    names = [name for name in (*DIVERGENCES, "grpo", "control") if any(cell.name == name for cell in summaries)]
    label = {"grpo": "GRPO (the host's)", "control": "control: learning rate 0"}
    head = "| | sampled reward, first 10 steps | last 10 steps | held-out accuracy before | after |"
    rule = "| --- | --- | --- | --- | --- |"
    keys = ("reward_first10", "reward_last10", "heldout_accuracy_before", "heldout_accuracy_after")

    mean_rows, seed_rows = [], []
    for name in names:
        runs = [summary for cell, summary in summaries.items() if cell.name == name]
        title = label.get(name, f"f-GRPO, {name}")
        means = [f"{statistics.fmean(run[key] for run in runs):.2f}" for key in keys]
        mean_rows.append(f"| {title} ({len(runs)} seed{'s' * (len(runs) > 1)}) | {' | '.join(means)} |")
        for run in runs:
            values = " | ".join(f"{run[key]:.3f}" for key in keys)
            seconds = f"{run['steps']} | {run['seconds_per_step_median']:.2f} | {run['seconds_total']:.0f}"
            seed_rows.append(f"| {title}, seed {run['seed']} | {values} | {seconds} |")

    table = "\n".join([head, rule, *mean_rows])
    per_seed = "\n".join(
        [head + " steps | s a step | s in all |", rule + " --- | --- | --- |", *seed_rows],
    )
    figure = ROOT / "docs" / "figures" / "quickstart.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    curves = {
        label.get(name, name): [folder / cell.folder / "metrics.jsonl" for cell in summaries if cell.name == name]
        for name in names
        if name != "control"
    }
    draw(curves, figure, title="quick start: mean of the seeds, each seed faint")
    (ROOT / "docs" / "quickstart.md").write_text(PAGE.format(where=_where(), table=table, per_seed=per_seed))
    readme = ROOT / "README.md"
    block = r"(<!-- quickstart -->\n).*?(\n<!-- /quickstart -->)"
    readme.write_text(re.sub(block, lambda found: found[1] + table + found[2], readme.read_text(), flags=re.DOTALL))


def _where() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    import os

    cores = len(os.sched_getaffinity(0))
    return f"{date.today()}, commit {commit.stdout.strip()}, {cores} CPU cores ({platform.machine()}), no GPU"


PAGE = """# Quick start: measured

Two-digit addition, a 0.4 M parameter model warmed up with half of the labels wrong, 32 prompts x 8 answers a step,
through the stock host (Ray, FSDP2, vLLM, weights sent every step). One setting for every row:
`fgrpo_plugin/conf/fgrpo/quickstart.yaml`. Held-out accuracy is greedy, on operand pairs never trained on. The warmed-up
model depends on the seed alone and is made once a seed; "s in all" of the other runs is without it. Seconds depend on
what else the machine does; `make quickstart` from a fresh clone is timed in [testing.md](testing.md).

Made by `python benchmarks/quickstart.py`; report of {where}.

![Sampled reward against training step](figures/quickstart.png)

{table}

Each seed:

{per_seed}
"""


if __name__ == "__main__":
    typer.run(main)
