"""f-HAL on the hybrid task, lambda by lambda, in plain torch:  python experiments/lambda_lab/lab.py --help"""

import subprocess
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from loop import Settings, run, warm_model
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sweeps import FIGURE, RESULTS, draw, read, read_sweeps, rich_table, write
from transformers.utils import logging

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "runs" / "lab"
LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]
SEEDS = [0, 1, 2, 3, 4]
TUNING_SEEDS_FROM = 100
DEFAULT = Settings()


def results_file(out: Path, settings: Settings, seed: int) -> Path:
    """Where a run is kept: every run on a tuning seed counts as tuning, whoever makes it and however it ends."""
    return out / ("tuning.json" if seed >= TUNING_SEEDS_FROM else f"sweep_{settings.preset}.json")


def is_recorded(out: Path, settings: Settings, lam: float, seed: int) -> bool:
    """Whether a run has been made; it is not made again.

    Raises:
        typer.BadParameter: the sweep in this folder was made with other settings.
    """
    path = results_file(out, settings, seed)
    runs = read(path)
    if seed < TUNING_SEEDS_FROM and any(run["settings"] != asdict(settings) for run in runs):
        raise typer.BadParameter(f"{path} was made with other settings; name another folder with --out.")
    key = (lam, seed, asdict(settings))
    return any((run["lambda"], run["seed"], run["settings"]) == key for run in runs)


def record(out: Path, settings: Settings, lam: float, seed: int, measured: dict[str, Any], commit: str) -> None:
    """Add a run to the results, numbers to six digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.6g}")

    kept = {"lambda": lam, "seed": seed, **rounded(measured), "settings": asdict(settings)}
    path = results_file(out, settings, seed)
    write([*read(path), kept | {"commit": commit, "date": str(date.today())}], path)


def current_commit() -> str:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(
    lam: Annotated[list[float], typer.Option(help="Weight of the preference half; again for more.")] = LAMBDAS,
    seeds: Annotated[list[int], typer.Option(help="From 100 on: tuning; again for more.")] = SEEDS,
    divergence: str = DEFAULT.divergence,
    beta: float = DEFAULT.beta,
    preset: Annotated[
        str, typer.Option(help="stable, paper or released; each has a sweep of its own.")
    ] = DEFAULT.preset,
    steps: Annotated[int, typer.Option(min=1)] = DEFAULT.steps,
    learning_rate: float = DEFAULT.learning_rate,
    preference_pairs: Annotated[int, typer.Option(help="Preference pairs a step.", min=1)] = DEFAULT.preference_pairs,
    out: Annotated[Path, typer.Option(help="Folder of the results; each run in it is made once.")] = RESULTS,
) -> None:
    """Make the runs that are not yet recorded in the results, one at a time, and show the sweep."""
    logging.disable_progress_bar()  # a bar for each of 26 small tensors
    torch.set_num_threads(1)  # a model this small gains little from two
    settings = Settings(
        divergence=divergence,
        beta=beta,
        preset=preset,
        steps=steps,
        learning_rate=learning_rate,
        preference_pairs=preference_pairs,
    )
    try:
        for value in lam:
            settings.losses(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    cells = [(value, seed) for seed in seeds for value in lam if not is_recorded(out, settings, value, seed)]
    commit = current_commit()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("runs", total=len(cells) * settings.steps)
        for value, seed in cells:
            progress.update(bar, description=f"seed {seed}, warm-up")
            warm_model(seed, MODELS)  # its minute is the seed's, not the run's
            progress.update(bar, description=f"seed {seed}, lambda {value:g}")
            started = time.monotonic()
            measured = run(settings, value, seed, MODELS, lambda _: progress.advance(bar))
            record(out, settings, value, seed, measured | {"seconds": time.monotonic() - started}, commit)
    console = Console()
    for name in (f"sweep_{preset}", "tuning"):
        runs = [run for run in read(out / f"{name}.json") if run["settings"] == asdict(settings)]
        if runs:
            console.print(name, rich_table(runs))
    if sweeps := read_sweeps(out):
        draw(sweeps, FIGURE if out == RESULTS else out / FIGURE.name)


if __name__ == "__main__":
    typer.run(main)
