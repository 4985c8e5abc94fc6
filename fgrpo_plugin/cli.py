"""The command line: ``fgrpo doctor`` and ``fgrpo quickstart``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="f-GRPO and f-HAL inside stock verl.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.command()
def doctor(
    ray: Annotated[bool, typer.Option(help="Start Ray and look into one of its workers (about 15 seconds).")] = True,
) -> None:
    """Say whether this environment can train with f-GRPO: one line a check, exit code 1 and the remedy if it cannot."""
    from fgrpo_plugin.doctor import examine

    if not examine(start_ray=ray):
        raise typer.Exit(1)


@app.command()
def quickstart(
    algo: Annotated[str, typer.Option(help="f_grpo, or grpo (the host's own) for comparison.")] = "f_grpo",
    divergence: Annotated[str, typer.Option(help="Name of f.")] = "pearson",
    seed: Annotated[int, typer.Option(help="Seed of the data order, the warm-up and the rollouts.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for everything the run writes.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your .parquet or .jsonl in verl's own data format.")] = None,
    model: Annotated[Path | None, typer.Option(help="Local Hugging Face causal LM in place of the tiny one.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the actor.")] = None,
    override: Annotated[list[str] | None, typer.Option(help="Further Hydra override for the host; repeatable.")] = None,
) -> None:
    """Train a tiny model with f-GRPO through the stock host on a CPU and draw its reward curve."""
    from fgrpo_plugin.quickstart.run import QuickstartError, QuickstartOptions, run_quickstart

    try:
        options = QuickstartOptions(
            algo=algo,
            divergence=divergence,
            seed=seed,
            steps=steps,
            run_dir=run_dir,
            data=data,
            model=model,
            learning_rate=learning_rate,
            overrides=tuple(override or ()),
        )
        run_quickstart(options)
    except QuickstartError as error:
        print(f"fgrpo quickstart: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
