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

PAGE = """# Lambda on a reward that can be exploited

Goal: see in minutes, on one CPU core, what f-HAL's lambda is for. On-policy data are rewarded by a flawed proxy, preference
data tell the truth about a few prompts, and a judge who is never asked during training measures what came of it.

```bash
python recipes/lab/lab.py                      # makes what is missing of the sweep; then the table and the figure
python recipes/lab/lab.py --help               # a sweep of your own: --divergence pearson --out runs/my-sweep
python recipes/lab/report.py                   # this page and its figure, from results/
```

The task (`fgrpo_plugin/quickstart/hybrid.py`) is two-digit addition with the quick start's model of 0.4 M parameters. The
judge wants the sum and nothing else. The proxy pays 0.4 for the right last digit and 0.6 for an answer that ends with "!", so
that a bluff ("73!" to 12+34=) is worth more than the sum. The warm-up stops early and has seen some bluffs. The preferences:
the sum over a wrong one, over a bluff and over itself with "!", for 64 of some 7400 training prompts. Proxy, preferences and
judge were fixed in commit bd1c989, before the first run.

The loop (`loop.py`) is plain torch around `group_advantages`, `group_weights`, `implicit_reward`, `f_grpo_loss`, `fdo_loss`
and `f_hal_loss`. lambda = 0 draws no preferences, lambda = 1 rolls nothing out.

## Measured

{seeds} seeds, each run made once; means over 256 held-out prompts, mean ± standard deviation over the seeds. Rewards are
those of answers sampled at temperature 1 unless it says greedy. Made at {made}; {seconds} s a run (median, one core),
without a seed's warm-up.

{sweep}

![Proxy against true reward, a point for each lambda](../../docs/figures/hybrid_sweep.png)

{verdict}

{reading}

True reward of every run:

{runs}

## Settings and tuning

The settings of the sweep are the defaults of `Settings` in `loop.py`. {tried} configurations were tried ({tuning_runs} runs,
seeds {tuning_seeds}): `lab.py` itself records every run on a seed from 100 on in `results/tuning.json`. Chosen: the
largest true reward, averaged over lambda = 0.5 and 1 so that neither is favoured. The first column says in what a
configuration differs from the chosen one; true reward:

{tuning}
"""

READING = ""

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


def verdict(runs: Sequence[Run]) -> str:
    """What the paper leads one to expect beside what was measured."""
    groups = by_lambda(runs)
    means = {lam: spread(group, "after", "true")[0] for lam, group in groups.items()}
    middle = max((lam for lam in groups if 0 < lam < 1), key=lambda lam: means[lam])
    true = {(run["lambda"], run["seed"]): run["after"]["true"] for run in runs}
    wins = [seed for lam, seed in true if lam == middle and true[lam, seed] > max(true[0.0, seed], true[1.0, seed])]

    def change(lam: float, key: str) -> str:
        return f"{spread(starts(runs), 'before', key)[0]:.2f} to {spread(groups[lam], 'after', key)[0]:.2f}"

    return markdown(
        [
            ["expected from the paper", "measured"],
            ["lambda = 0 exploits the proxy", f"proxy {change(0.0, 'proxy')}, true reward {change(0.0, 'true')}"],
            [
                "lambda = 1 is safe but learns little",
                f"true reward {change(1.0, 'true')}; greedy {change(1.0, 'true_greedy')}",
            ],
            [
                "the middle wins",
                f"lambda = {middle:g}: true reward {change(middle, 'true')}; greedy {change(middle, 'true_greedy')}; "
                f"above both ends on {len(wins)} of {len(groups[middle])} seeds",
            ],
        ]
    )


def run_rows(runs: Sequence[Run]) -> list[list[str]]:
    """True reward of each run: a row for each seed, a column for each lambda."""
    groups = by_lambda(runs)
    rows = [["seed", "before", *(f"lambda {lam:g}" for lam in groups)]]
    for run in sorted(starts(runs), key=lambda run: run["seed"]):
        after = [r["after"]["true"] for group in groups.values() for r in group if r["seed"] == run["seed"]]
        rows.append([str(run["seed"]), *(f"{value:.3f}" for value in (run["before"]["true"], *after))])
    return rows


def tuning_rows(tuning: Sequence[Run], chosen: dict[str, Any]) -> list[list[str]]:
    """True reward of each configuration that was tried, in the order of trying."""
    configurations: dict[str, list[Run]] = {}
    for run in tuning:
        differs = {key: value for key, value in run["settings"].items() if value != chosen[key]}
        name = ", ".join(f"{key} {value}" for key, value in differs.items()) or "**chosen**"
        configurations.setdefault(name, []).append(run)
    lambdas = sorted({run["lambda"] for run in tuning})
    rows = [["", "seeds", *(f"lambda {lam:g}" for lam in lambdas), "mean of 0.5 and 1"]]
    for name, runs in configurations.items():
        means = {lam: spread(group, "after", "true")[0] for lam, group in by_lambda(runs).items()}
        cells = [f"{means[lam]:.3f}" if lam in means else "" for lam in lambdas]
        seeds = ", ".join(str(run["seed"]) for run in starts(runs))
        rows.append([name, seeds, *cells, f"{(means[0.5] + means[1.0]) / 2:.3f}"])
    return rows


def page() -> str:
    """The text of recipes/lab/README.md."""
    sweep, tuning = (read(RESULTS / f"{name}.json") for name in ("sweep", "tuning"))
    tried = tuning_rows(tuning, sweep[0]["settings"])
    return PAGE.format(
        seeds=len(starts(sweep)),
        made="; ".join(dict.fromkeys(f"{run['commit']}, {run['date']}" for run in sweep)),
        seconds=f"{statistics.median(run['seconds'] for run in sweep):.0f}",
        sweep=markdown(sweep_rows(sweep)),
        verdict=verdict(sweep),
        reading=READING,
        runs=markdown(run_rows(sweep)),
        tried=len(tried) - 1,
        tuning_runs=len(tuning),
        tuning_seeds=", ".join(str(run["seed"]) for run in starts(tuning)),
        tuning=markdown(tried),
    )


if __name__ == "__main__":
    (HERE / "README.md").write_text(page())
    draw(read(RESULTS / "sweep.json"), FIGURE)
