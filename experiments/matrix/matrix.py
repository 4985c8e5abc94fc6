"""Every quick-start figure of the documentation: three divergences and GRPO on three seeds each, and a control.

    python experiments/matrix/matrix.py [--only grpo-seed1,kl-seed0] [--report-only]

What a run gave is kept in results.json with its commit and date, the latest of each run; the page, its picture
docs/figures/quickstart.png and the table in the repository's README are made from that. A run that is complete in
runs/matrix-<commit> is not made again, so an interrupted matrix goes on where it stopped.
"""

import json
import os
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

from fgrpo_plugin.quickstart.options import QuickstartOptions
from fgrpo_plugin.quickstart.run import run_quickstart
from fgrpo_plugin.quickstart.summary import draw, read_metrics, rewards
from fgrpo_plugin.terminal import Terminal

ROOT = Path(__file__).parents[2]
DIVERGENCES = ("pearson", "jensen_shannon", "kl")
SEEDS = (0, 1, 2)
CONTROL_STEPS = 25
RESULTS = Path(__file__).parent / "results.json"


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
            divergence=self.name if self.name in DIVERGENCES else None,
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


def commit() -> str:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def default_folder() -> Path:
    """Runs of one commit lie together, so that none is taken for another's."""
    return ROOT / "runs" / f"matrix-{commit()}"


def run_matrix(folder: Path, wanted: Iterable[Cell], console: Terminal) -> dict[Cell, dict]:
    """Make the missing runs, one at a time, record each, and return every summary.

    The warmed-up model depends on the seed alone, so each seed's first run makes it and the others take it as MODEL.
    """
    summaries = {}
    folder.mkdir(parents=True, exist_ok=True)
    for cell in wanted:
        run = folder / cell.folder
        summary = run / "summary.json"
        if not summary.is_file():
            if run.exists():  # an interrupted run
                run.rename(folder / f"{cell.folder}.incomplete-{len(list(folder.iterdir()))}")
            made = [path for path in sorted(folder.glob(f"*-seed{cell.seed}/model")) if path.parent != run]
            run_quickstart(cell.options(run, made[0] if made else None), console)
        summaries[cell] = json.loads(summary.read_text())
        record(cell, summaries[cell], rewards(read_metrics(run / "metrics.jsonl")))
    return summaries


def record(cell: Cell, summary: dict, curve: list[float]) -> None:
    """Keep a run's summary and rewards in the results, in place of an earlier one of the same cell."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[cell.folder] = summary | {"rewards": curve, "commit": commit(), "date": str(date.today())}
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results)]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(
    report_only: Annotated[bool, typer.Option("--report-only", help="Make the documents from the results.")] = False,
    only: Annotated[str, typer.Option(help="Runs to make, such as grpo-seed1, with commas between.")] = "",
    folder: Annotated[Path | None, typer.Option(help="In place of runs/matrix-<commit>.")] = None,
) -> None:
    """Make the runs and the documents."""
    if not report_only:
        wanted = [cell for cell in cells() if not only or cell.folder in only.split(",")]
        run_matrix(folder or default_folder(), wanted, Terminal())
    write_report()


def write_report() -> None:
    """experiments/matrix/README.md, the picture, and the README's table, from the results."""
    results = json.loads(RESULTS.read_text())
    summaries = {cell: results[cell.folder] for cell in cells() if cell.folder in results}
    names = [name for name in (*DIVERGENCES, "grpo", "control") if any(cell.name == name for cell in summaries)]
    label = {"grpo": "GRPO (verl's)", "control": "control: learning rate 0"}
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
            made = f"{run['commit']}, {run['date']}"
            seed_rows.append(f"| {title}, seed {run['seed']} | {values} | {seconds} | {made} |")

    table = "\n".join([head, rule, *mean_rows])
    per_seed = "\n".join(
        [head + " steps | s a step | s in all | measured |", rule + " --- | --- | --- | --- |", *seed_rows],
    )
    trained = [(cell, run) for cell, run in summaries.items() if cell.name != "control"]
    if all(run["rewards"] for _, run in trained):
        curves: dict[str, list] = {}
        for cell, run in trained:
            curves.setdefault(label.get(cell.name, cell.name), []).append(run["rewards"])
        draw(curves, ROOT / "docs" / "figures" / "quickstart.png", "quick start: mean of the seeds, each seed faint")
    else:  # runs from before the results held curves
        print("docs/figures/quickstart.png is left as it is: some results have no curve; make those runs anew")
    RESULTS.with_name("README.md").write_text(PAGE.format(where=_where(), table=table, per_seed=per_seed))
    readme = ROOT / "README.md"
    block = r"(<!-- quickstart -->\n).*?(\n<!-- /quickstart -->)"
    readme.write_text(re.sub(block, lambda found: found[1] + table + found[2], readme.read_text(), flags=re.DOTALL))


def _where() -> str:
    return f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), no GPU"


PAGE = """# Quick start: measured

Two-digit addition, a 0.4 M parameter model warmed up with half of the labels wrong, 24 prompts x 8 responses a step,
through the stock verl (Ray, FSDP2, vLLM, weights sent every step). One setting for every row:
`fgrpo_plugin/conf/fgrpo/quickstart.yaml`. Held-out accuracy is greedy, on operand pairs never trained on. The warmed-up
model depends on the seed alone and is made once a seed; "s in all" of the other runs is without it. Seconds depend on
the machine and on what else it does; `make quickstart` from a fresh clone is timed in
[testing.md](../../docs/testing.md). The picture is drawn where every run of results.json has its curve. Some runs were
made two at a time.

Made by `python experiments/matrix/matrix.py` on {where}; each run's commit and day stand beside it.

![Sampled reward against training step](../../docs/figures/quickstart.png)

{table}

Each seed:

{per_seed}
"""


if __name__ == "__main__":
    typer.run(main)
