"""The hybrid task through stock verl at lambda 0, 0.5 and 1, beside the lab's five seeds.

    python experiments/hybrid/through_verl.py [--lam 0.5] [--report-only]

Runs go to runs/laptop_hybrid, what they gave to results.json, and from that the table in README.md is made.
"""

import json
import math
import re
import statistics
import subprocess
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from fgrpo_plugin.quickstart.options import QuickstartOptions
from fgrpo_plugin.quickstart.run import run_quickstart
from fgrpo_plugin.terminal import Terminal

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
LAB = HERE.parent / "lambda_lab" / "results" / "sweep_stable.json"
LAMBDAS = (0.0, 0.5, 1.0)
ANSWERS = 256
"""Held-out responses that verl's validation samples, one a prompt."""


def lab_spread(lam: float, kind: str) -> tuple[float, float, float]:
    """Mean, smallest and largest value over the lab's seeds after training, sampled.

    Args:
        lam: lambda.
        kind: "proxy" or "true".
    """
    values = [run["after"][kind] for run in json.loads(LAB.read_text()) if run["lambda"] == lam]
    return statistics.fmean(values), min(values), max(values)


def agrees(value: float, lam: float, kind: str) -> bool:
    """Whether verl's run lies within the lab's seeds, give or take two standard errors of its few responses."""
    _, low, high = lab_spread(lam, kind)
    error = 2 * math.sqrt(max(value * (1 - value), 1 / ANSWERS) / ANSWERS)
    return low - error <= value <= high + error


def table(results: dict[str, dict]) -> str:
    """The page's table."""
    lines = ["| lambda | proxy before | after | lab's seeds | true before | after | lab's seeds | s a step | commit |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for lam in (value for value in LAMBDAS if f"{value:g}" in results):
        run = results[f"{lam:g}"]
        cells = [f"{lam:g}"]
        for kind, before, after in (
            ("proxy", "heldout_accuracy_before", "heldout_accuracy_after"),
            ("true", "true_reward_before", "true_reward_after"),
        ):
            mean, low, high = lab_spread(lam, kind)
            cells += [f"{run[before]:.2f}", f"{run[after]:.2f}", f"{mean:.2f} ({low:.2f} to {high:.2f})"]
        lines.append("| " + " | ".join([*cells, f"{run['seconds_per_step_median']:.1f}", run["commit"]]) + " |")
    return "\n".join(lines)


def write_report() -> None:
    """Put the table into README.md."""
    page = HERE / "README.md"
    made = f"<!-- runs -->\n{table(json.loads(RESULTS.read_text()))}\n<!-- /runs -->"
    page.write_text(re.sub(r"<!-- runs -->.*<!-- /runs -->", lambda _: made, page.read_text(), flags=re.DOTALL))


def main(
    lam: Annotated[float | None, typer.Option(help="One lambda alone.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Make the table from the results.")] = False,
    folder: Annotated[Path, typer.Option(help="Where runs go; complete ones are taken as they are.")] = Path(
        "runs/laptop_hybrid"
    ),
) -> None:
    """Make the runs and the table, and say whether they agree with the lab."""
    console = Terminal()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for value in [] if report_only else LAMBDAS if lam is None else (lam,):
        run = folder / f"lam{value:g}"
        if not (run / "summary.json").is_file():
            head = ["git", "rev-parse", "--short", "HEAD"]
            done = subprocess.run(head, cwd=HERE, capture_output=True, text=True, check=True)
            run_quickstart(QuickstartOptions(algo="f_hal", lam=value, run_dir=run), console)
            made = {"commit": done.stdout.strip(), "date": str(date.today())}
            (run / "made.json").write_text(json.dumps(made))
        parts = [json.loads((run / name).read_text()) for name in ("summary.json", "made.json")]
        results[f"{value:g}"] = parts[0] | parts[1]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_report()
    for key, summary in results.items():
        for kind, name in (("proxy", "heldout_accuracy_after"), ("true", "true_reward_after")):
            verdict = "agrees with the lab" if agrees(summary[name], float(key), kind) else "DISAGREES with the lab"
            console.print(f"lambda {key}, {kind}: {summary[name]:.3f} {verdict}")


if __name__ == "__main__":
    typer.run(main)
