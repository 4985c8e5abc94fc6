"""``fgrpo replay`` on the command line."""

from pathlib import Path
from typing import Annotated

import typer


def replay(
    file: Annotated[Path, typer.Argument(help="failed/step_N_rank_R.safetensors of a run.")],
    float64: Annotated[bool, typer.Option("--float64", help="In double precision, not in the run's.")] = False,
) -> None:
    """Compute an update that was not finite again, and name the rows; exit code 1 if it is not finite here either."""
    from fgrpo_plugin.replay.recompute import replay as recompute
    from fgrpo_plugin.terminal import Terminal

    if recompute(file, Terminal(), float64=float64):
        raise typer.Exit(1)
