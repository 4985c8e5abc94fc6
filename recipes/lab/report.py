"""Make recipes/lab/README.md and its figure from recipes/lab/results:  python recipes/lab/report.py"""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURE = HERE.parents[1] / "docs" / "figures" / "hybrid_sweep.png"

Run = dict[str, Any]
COLUMNS = {
    "proxy reward": "proxy",
    "true reward": "true",
    "confident endings": "confident",
    "true reward, greedy": "true_greedy",
}


def read(path: Path) -> list[Run]:
    """The runs of a results file, in the order in which they were made."""
    return json.loads(path.read_text()) if path.is_file() else []


def write(runs: Sequence[Run], path: Path) -> None:
    """One run a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")


def spread(runs: Iterable[Run], when: str, key: str) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 of one run) over runs, `when` being before or after."""
    values = [run[when][key] for run in runs]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def by_lambda(runs: Iterable[Run]) -> dict[float, list[Run]]:
    """The runs of each lambda, in rising order."""
    groups: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run["lambda"], run["seed"])):
        groups.setdefault(run["lambda"], []).append(run)
    return groups


def starts(runs: Sequence[Run]) -> list[Run]:
    """One run of each seed: what was before training depends on the seed alone."""
    return list({run["seed"]: run for run in runs}.values())


def sweep_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Head and rows of the table of a sweep: mean and standard deviation over the seeds."""

    def cells(group: Sequence[Run], when: str) -> list[str]:
        return ["{:.3f} ± {:.3f}".format(*spread(group, when, key)) for key in COLUMNS.values()]

    rows = [["", *COLUMNS], ["before training", *cells(starts(runs), "before")]]
    rows += [[f"lambda {lam:g}", *cells(group, "after")] for lam, group in by_lambda(runs).items()]
    return rows


def rich_table(runs: Sequence[Run]) -> Table:
    """The table of a sweep for the terminal."""
    head, *rows = sweep_rows(runs)
    table = Table(title=f"held-out prompts, mean ± standard deviation of {len(starts(runs))} seeds")
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the head first, as a table."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def draw(runs: Sequence[Run], target: Path) -> None:
    """Proxy against true reward: a point and error bars (standard deviation over the seeds) for each lambda."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.2, 4.4), dpi=120, layout="constrained")

    def point(group: Sequence[Run], when: str, label: str, **style: Any) -> None:
        (x, dx), (y, dy) = (spread(group, when, key) for key in ("proxy", "true"))
        axes.errorbar(x, y, xerr=dx, yerr=dy, capsize=3, label=label, **style)

    point(starts(runs), "before", "before training", fmt="s", color="grey")
    groups = by_lambda(runs)
    path = [[spread(group, "after", key)[0] for group in groups.values()] for key in ("proxy", "true")]
    axes.plot(*path, color="lightgrey", zorder=0)
    for index, (lam, group) in enumerate(groups.items()):
        point(group, "after", rf"$\lambda$ = {lam:g}", fmt="o", color=plt.get_cmap("viridis")(index / len(groups)))
    axes.set(xlabel="proxy reward (trained on)", ylabel="true reward (never seen in training)")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Software": None})
    plt.close(figure)
