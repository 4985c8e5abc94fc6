"""Write tests/trajectories/committed.csv anew: python -m tests.trajectories.make (half a minute)."""

import tempfile
from pathlib import Path

import torch

from tests.support.float64_loops import by_definitions, follow
from tests.support.trajectories import COMMITTED, RUNS, prepare, write


def make(file: Path = COMMITTED) -> None:
    """Every run by the definitions alone."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        write({run.name: follow(Path(folder) / "model", run, by_definitions) for run in RUNS}, file)


if __name__ == "__main__":
    make()
