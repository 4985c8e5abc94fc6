"""The lab's runs: read, written, gathered by lambda and preset, as rows of tables and as the picture."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fgrpo_plugin.config import PRESETS
from fgrpo_plugin.quickstart.hybrid import CONFIDENCE_REWARD, LAST_DIGIT_REWARD

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURE = HERE.parents[1] / "docs" / "figures" / "hybrid_sweep.png"
SWEPT = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = {
    "proxy reward": "proxy",
    "true reward": "true",
    "confident endings": "confident",
    "last digit right": "last_digit",
    "true reward, greedy": "true_greedy",
}
Run = dict[str, Any]


def read(path: Path) -> list[Run]:
    """The runs of a results file, in the order in which they were made."""
    return json.loads(path.read_text()) if path.is_file() else []


def read_sweeps(folder: Path) -> dict[str, list[Run]]:
    """The runs of each preset whose sweep is in a folder, in the order of PRESETS."""
    found = {preset: read(folder / f"sweep_{preset}.json") for preset in PRESETS}
    return {preset: runs for preset, runs in found.items() if runs}


def write(runs: Sequence[Run], path: Path) -> None:
    """One run a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")


def rate(measured: dict[str, float], key: str) -> float:
    """One of the measured rates; `last_digit` follows from the proxy, which is the sum of two parts."""
    if key == "last_digit":
        return (measured["proxy"] - CONFIDENCE_REWARD * measured["confident"]) / LAST_DIGIT_REWARD
    return measured[key]


def spread(runs: Iterable[Run], when: str, key: str) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 of one run) over runs, `when` being before or after."""
    values = [rate(run[when], key) for run in runs]
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


def draw(sweeps: dict[str, Sequence[Run]], target: Path) -> None:
    """Proxy against true reward: a line for each preset; a point and its standard deviation for each lambda."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.8, 4.8), dpi=120, layout="constrained")
    everything = [run for runs in sweeps.values() for run in runs]
    lambdas = sorted({run["lambda"] for run in everything})

    def point(group: Sequence[Run], when: str, **style: Any) -> None:
        (x, dx), (y, dy) = (spread(group, when, key) for key in ("proxy", "true"))
        axes.errorbar(x, y, xerr=dx, yerr=dy, capsize=3, **style)

    point(starts(everything), "before", fmt="s", color="grey", label="before training")
    for (preset, runs), marker, line in zip(sweeps.items(), "o^v", ("-", "--", ":"), strict=False):
        groups = by_lambda(runs)
        path = [[spread(group, "after", key)[0] for group in groups.values()] for key in ("proxy", "true")]
        axes.plot(*path, color="grey", linestyle=line, zorder=0, marker=marker, label=preset)
        for lam, group in groups.items():
            label = rf"$\lambda$ = {lam:g}" if preset == next(iter(sweeps)) else None
            color = plt.get_cmap("viridis")(lambdas.index(lam) / len(lambdas))
            point(group, "after", fmt=marker, color=color, label=label, alpha=0.85)
    axes.set(xlabel="proxy reward (trained on)", ylabel="true reward (never seen in training)")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Software": None})
    plt.close(figure)


def share(run: Run, step: int | None = None) -> float:
    """On-policy share of the slopes in a step, or the mean over the run."""
    pairs = zip(run["curves"]["on_policy_slope"], run["curves"]["preference_slope"], strict=True)
    shares = [on / (on + off) for on, off in pairs if on + off]
    return statistics.fmean(shares) if step is None else shares[step]


def measured_q(runs: Iterable[Run]) -> tuple[float, dict[float, float]]:
    """q in the first step, a mean over runs; and its mean over each lambda's runs."""
    with_q = [run for run in runs if "q" in run["curves"]]
    first = statistics.fmean(run["curves"]["q"][0] for run in with_q)
    return first, {
        lam: statistics.fmean(q for run in group for q in run["curves"]["q"] if q == q)
        for lam, group in by_lambda(with_q).items()
    }


def same_experiment(lam: float, q: float, beta: float) -> float:
    """lambda of `stable` whose first gradient is that of `paper` at lam: (1-l')/l' = q (1 + 1/beta) (1-l)/l."""
    odds = q * (1 + 1 / beta) * (1 - lam) / lam
    return 1 / (1 + odds)


def preset_rows(sweeps: dict[str, list[Run]]) -> list[list[str]]:
    """Proxy and true reward of each preset at each lambda of the sweep."""
    names = list(sweeps)
    rows = [["", *(f"{name}: {key}" for name in names for key in ("proxy", "true"))]]
    for lam in SWEPT:
        groups = [by_lambda(sweeps[name])[lam] for name in names]
        cells = [
            "{:.3f} ± {:.3f}".format(*spread(group, "after", key)) for group in groups for key in ("proxy", "true")
        ]
        rows.append([f"lambda {lam:g}", *cells])
    return rows


def matches(sweeps: dict[str, list[Run]], q: float) -> dict[float, float]:
    """lambda of `paper` -> the nearest lambda of `stable` that was run to match it."""
    made = [lam for lam, group in by_lambda(sweeps["stable"]).items() if "q" in group[0]["curves"]]
    beta = sweeps["paper"][0]["settings"]["beta"]
    return {lam: min(made, key=lambda x, lam=lam: abs(x - same_experiment(lam, q, beta))) for lam in SWEPT[1:-1]}


def matched_rows(sweeps: dict[str, list[Run]], q: float) -> list[list[str]]:
    """Each lambda of `paper` beside the run of `stable` that begins as it does."""
    paper, stable = by_lambda(sweeps["paper"]), by_lambda(sweeps["stable"])
    rows = [["lambda, paper", "proxy", "true", "on-policy share", "l', stable", "run at", "proxy", "true", "share"]]
    for lam in SWEPT[1:-1]:
        other, nearest = same_experiment(lam, q, paper[lam][0]["settings"]["beta"]), matches(sweeps, q)[lam]
        cells = []
        for group in (paper[lam], stable[nearest]):
            rewards = ["{:.3f} ± {:.3f}".format(*spread(group, "after", key)) for key in ("proxy", "true")]
            shares = [statistics.fmean(share(run, step) for run in group) for step in (0, None)]
            cells.append([*rewards, "{:.2f}, {:.2f}".format(*shares)])
        rows.append([f"{lam:g}", *cells[0], f"{other:.3f}", f"{nearest:g}", *cells[1]])
    return rows


def apart_rows(sweeps: dict[str, list[Run]], q: float) -> list[list[str]]:
    """`stable` minus `paper` where they begin alike: mean over the seeds, and how many seeds have its sign."""
    rows = [["lambda of `paper`, of `stable`", *(name for name, key in COLUMNS.items() if key != "last_digit")]]
    for lam, other in matches(sweeps, q).items():
        after = [
            {run["seed"]: run["after"] for run in by_lambda(sweeps[preset])[value]}
            for preset, value in (("stable", other), ("paper", lam))
        ]
        cells = []
        for key in (key for key in COLUMNS.values() if key != "last_digit"):
            gaps = [after[0][seed][key] - after[1][seed][key] for seed in after[1]]
            mean = statistics.fmean(gaps)
            cells.append(f"{mean:+.3f} ({sum(gap * mean > 0 for gap in gaps)} of {len(gaps)})")
        rows.append([f"{lam:g}, {other:g}", *cells])
    return rows


def win_rows(sweeps: dict[str, list[Run]]) -> list[list[str]]:
    """On how many seeds the true reward in the middle is above that at both ends, preset by preset."""
    rows = [["", *(f"lambda {lam:g}" for lam in SWEPT[1:-1])]]
    for preset, runs in sweeps.items():
        true = {(run["lambda"], run["seed"]): run["after"]["true"] for run in runs}
        seeds = sorted({run["seed"] for run in runs})
        wins = [sum(true[lam, s] > max(true[SWEPT[0], s], true[SWEPT[-1], s]) for s in seeds) for lam in SWEPT[1:-1]]
        rows.append([preset, *map(str, wins)])
    return rows


def swept(runs: Iterable[Run]) -> list[Run]:
    """The runs of the sweep itself, without those that were made to match another preset's."""
    return [run for run in runs if run["lambda"] in SWEPT]
