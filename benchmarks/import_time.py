"""What the plugin adds to ``import verl``: fresh processes with and without it, alternately. Target: at most 0.1 s.

python benchmarks/import_time.py [--repeats 9]
"""

import os
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

TARGET = 0.1
CODE = "import time; start = time.perf_counter(); import verl; print(time.perf_counter() - start)"


def once(policy: str) -> float:
    """Seconds of ``import verl`` in a fresh process."""
    env = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": policy}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=env)
    return float(done.stdout.split()[-1])


def main(
    repeats: int = 9,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print the medians and their difference."""
    once("auto")  # the first import reads everything from disk
    times: dict[str, list[float]] = {"auto": [], "none": []}
    for _ in range(repeats):
        for policy, values in times.items():
            values.append(once(policy))
    with_plugin, without = (statistics.median(times[policy]) for policy in ("auto", "none"))
    table = Table(title=f"import verl, median of {repeats} fresh processes each")
    columns = ("with the plugin, s", "without, s", "difference, s", "target, s")
    met = "met" if with_plugin - without <= TARGET else "missed"
    row = (f"{with_plugin:.3f}", f"{without:.3f}", f"{with_plugin - without:+.3f}", f"at most {TARGET}: {met}")
    for column in columns:
        table.add_column(column)
    table.add_row(*row)
    Console().print(table)
    if output is not None:
        lines = [" | ".join(columns), " | ".join("---" for _ in columns), " | ".join(row)]
        where = f"{os.cpu_count()} CPU cores, {date.today()}"
        made = f"Median of {repeats} fresh processes each; {where}."
        output.write_text("".join(f"| {line} |\n" for line in lines) + f"\n{made}\n")


if __name__ == "__main__":
    typer.run(main)
