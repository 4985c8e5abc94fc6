"""Mutation testing: small changes of the code, one at a time, each of which a test ought to notice.

A parent imports the libraries that the tests use, though nothing of the plugin or verl, and forks a child a mutant.
The child is given the changed source by an import hook, so the working tree stays as it is, and runs the target's test
files up to the first failure. A survivor is killed by a new test, or shown equivalent in tests/equivalent_mutants.txt.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.mutation_targets import SLOW, TARGETS, Target
from tests.mutations import Edit, edits

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VERL_PLATFORM": "cpu", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Mutant:
    """An edit of a target, by its place in the list of all."""

    number: int
    target: Target
    edit: Edit

    @property
    def row(self) -> str:
        """How a line of equivalent_mutants.txt begins."""
        return f"{self.target.file} | {self.edit.before} | {self.edit.after} | "

    def __str__(self) -> str:
        return f"{self.target.file}:{self.edit.line}: {self.edit.before} -> {self.edit.after}"


def all_mutants(targets: Sequence[Target] = TARGETS) -> list[Mutant]:
    found = ((target, edit) for target in targets for edit in edits(_source(target), target.functions))
    return [Mutant(number, target, edit) for number, (target, edit) in enumerate(found)]


def draw(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` of the mutants, of each target in proportion to what it has; 0 takes all."""
    if not 0 < count < len(mutants):
        return list(mutants)
    # Mutants in a random order within their target, each at its share of the way through: the first ones are even.
    order = random.Random(seed)
    groups = [[mutant for mutant in mutants if mutant.target == target] for target in {m.target: None for m in mutants}]
    places = [((i + 0.5) / len(g), m.number, m) for g in groups for i, m in enumerate(order.sample(g, len(g)))]
    return sorted((mutant for _, _, mutant in sorted(places)[:count]), key=lambda mutant: mutant.number)


class Child:
    """A fork that runs a target's tests on a source, in a session of its own, with a home and a folder of its own."""

    def __init__(self, target: Target, source: str, limit: float = 600.0, root: Path = ROOT):
        self.folder = Path(tempfile.mkdtemp(prefix="mutant"))
        self.started, self.limit = time.monotonic(), limit
        self.answer, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_in_child, args=(target, source, root, self.folder, int(limit), theirs))
        self.process.start()
        theirs.close()

    def late(self) -> bool:
        return time.monotonic() - self.started > self.limit

    def finish(self) -> dict[str, Any]:
        """What it answered; the process and what it has started are ended."""
        answer: dict[str, Any] = {"outcome": "killed", "by": "the end of the process", "modules": []}
        if self.answer.poll(0):
            with suppress(EOFError):
                answer = self.answer.recv()
        elif self.late():
            answer |= {"outcome": "timeout", "by": f"{self.limit:.0f} s"}
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        answer["output"] = (self.folder / "output").read_text(errors="replace")[-3000:]
        shutil.rmtree(self.folder, ignore_errors=True)
        return answer | {"seconds": round(time.monotonic() - self.started, 2)}


class _Source(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):  # type: ignore[misc]
    """Finds one module, with another source than its file has; nothing that Python has compiled is read or written."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.text, self.used = source, False

    def find_spec(self, fullname, path=None, target=None):
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, fullname):
        self.used = True
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Witness:
    """A pytest plugin: the first test that fails."""

    first = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.first = self.first or (report.nodeid if report.failed else "")

    pytest_collectreport = pytest_runtest_logreport


def _in_child(target: Target, source: str, root: Path, folder: Path, limit: int, answer: Connection) -> None:
    os.setsid()
    signal.alarm(limit + 5)  # where the parent is no more
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"HOME": str(folder)}
    import pytest

    loader = _Source(target.file.removesuffix(".py").replace("/", "."), str(root / target.file), source)
    sys.meta_path.insert(0, loader)
    witness, options = _Witness(), ["-x", "-q", "--tb=short", "-m", "not long and not e2e", "-p", "no:cacheprovider"]
    deselected = [f"--deselect={name}" for name in SLOW]
    files = [str(root / name) for name in target.tests if (root / name).exists()]
    status = int(pytest.main([*options, *deselected, f"--basetemp={folder / 'tmp'}", *files], plugins=[witness]))
    outcome = "killed" if status else "survived" if loader.used else "not imported"
    installed = [
        name
        for name, module in list(sys.modules.items())
        if (getattr(getattr(module, "__spec__", None), "origin", None) or "").startswith(sys.prefix)
        and name.split(".")[0] not in ("verl", "fgrpo_plugin", "tests")
    ]
    answer.send({"outcome": outcome, "by": witness.first or f"pytest's status {status}", "modules": installed})
    os._exit(0)


def prepare(targets: Sequence[Target], say: Callable[[str], None]) -> dict[Target, float]:
    """Import what the tests import, and run each target's tests unchanged: target -> seconds.

    Raises:
        SystemExit: they fail as they are, or do not import the target.
    """
    seconds = {}
    for target in targets:
        for again in (False, True):  # the second is a mutant's time, with the libraries imported
            child = Child(target, _source(target))
            multiprocessing.connection.wait([child.answer], child.limit)
            found = child.finish()
            if found["outcome"] != "survived":
                raise SystemExit(f"{found['output']}\n{target.file}: its tests do not pass as they are: {found['by']}.")
            for name in [] if again else found["modules"]:
                if name not in sys.modules:
                    with suppress(Exception):  # what cannot be imported by itself is left to the child
                        importlib.import_module(name)
        seconds[target] = found["seconds"]
        say(f"{target.file}: its tests pass in {found['seconds']} s")
    return seconds


def run(
    mutants: Sequence[Mutant], seconds: dict[Target, float], jobs: int, tell: Callable[[Mutant | None, dict], None]
) -> None:
    """Run the mutants' tests, ``jobs`` at a time; ``tell`` hears of each that has finished, and of None in between."""
    waiting = deque(mutants)
    running: dict[Any, tuple[Mutant, Child]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.popleft()
            child = Child(mutant.target, mutant.edit.apply(_source(mutant.target)), 4 * seconds[mutant.target] + 10)
            running[child.answer] = mutant, child
        done = multiprocessing.connection.wait(list(running), 0.5)
        done += [answer for answer, (_, child) in running.items() if answer not in done and child.late()]
        for answer in done:
            mutant, child = running.pop(answer)
            found = child.finish()
            tell(mutant, {name: found[name] for name in ("outcome", "by", "seconds")})
        tell(None, {})


def _source(target: Target) -> str:
    return (ROOT / target.file).read_text()


def digest() -> str:
    """Of all that a result depends on: the code and the tests."""
    found = hashlib.sha256()
    for file in sorted([*ROOT.glob("fgrpo_plugin/**/*.py"), *ROOT.glob("tests/**/*.py")]):
        found.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return found.hexdigest()


def resume(file: Path, head: dict[str, Any]) -> dict[int, dict]:
    """Results of a stopped run with the same head, by number; the file is begun anew where there is none."""
    with suppress(OSError, ValueError, IndexError):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        if lines[0] == head:
            return {line["number"]: line for line in lines[1:]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head) + "\n")
    return {}


def main(
    count: Annotated[int, typer.Option(help="How many mutants are drawn; 0 takes all.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Part of a target's path; may be repeated.")] = None,
    ids: Annotated[str, typer.Option(help="Run these numbers instead, e.g. 12,57; results are not kept.")] = "",
    show: Annotated[bool, typer.Option("--list", help="Show what would be run.")] = False,
    jobs: Annotated[int, typer.Option(help="Mutants at a time.")] = 2,
    out: Annotated[Path, typer.Option(help="Results, a JSON line each; a stopped run goes on.")] = ROOT
    / "runs/mutants.jsonl",
) -> None:
    """Change the code a little, many times, and see whether the tests notice."""
    mutants = all_mutants()
    if ids:
        chosen = [mutants[int(number)] for number in ids.split(",")]
    else:
        chosen = draw([m for m in mutants if not only or any(part in m.target.file for part in only)], count, seed)
    if show or not chosen:
        for mutant in chosen:
            print(f"{mutant.number:5d} {mutant}")
        print(f"{len(chosen)} of {len(mutants)} mutants")
        return
    os.chdir(ROOT)
    os.environ |= ENVIRONMENT
    head = {"digest": digest(), "count": count, "seed": seed, "only": only}
    done = {} if ids else resume(out, head)
    console = Console(
        soft_wrap=True, highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120
    )
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # No thread that draws: a fork would not have it, but the locks that it holds.
    progress = Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal)
    waiting = [mutant for mutant in chosen if mutant.number not in done]
    total, start = len(chosen), 0.0

    def tell(mutant: Mutant | None, found: dict) -> None:
        if mutant is None:
            progress.refresh()
            return
        done[mutant.number] = {"number": mutant.number, "mutant": str(mutant), **found}
        if not ids:
            with out.open("a") as lines:
                lines.write(json.dumps(done[mutant.number]) + "\n")
        finished = sum(other.number in done for other in waiting)
        passed = time.monotonic() - start
        left = passed / finished * (len(waiting) - finished)
        progress.advance(task)
        console.print(
            f"[{len(done)}/{total}, {passed / 60:.1f} min, {left / 60:.1f} left] {mutant.number} {found['outcome']} "
            f"in {found['seconds']} s: {mutant}"
        )

    with progress:
        task = progress.add_task("mutants", total=total, completed=len(done))
        if waiting:
            seconds = prepare(list(dict.fromkeys(mutant.target for mutant in waiting)), console.print)
            start = time.monotonic()
            run(waiting, seconds, jobs, tell)
    raise typer.Exit(report(console, chosen, done, mutants))


def report(console: Console, chosen: Sequence[Mutant], done: dict[int, dict], mutants: Sequence[Mutant]) -> int:
    """Print the table and the survivors; 1 where one of them was not shown equivalent, else 0."""
    shown = [line for line in EQUIVALENT.read_text().splitlines() if line.strip() and not line.startswith("#")]
    table = Table("target", "drawn", "killed", "timeout", "survived", "equivalent")
    unexplained = []
    for target in dict.fromkeys(mutant.target for mutant in chosen):
        mine = [mutant for mutant in chosen if mutant.target == target]
        counts = Counter(done[mutant.number]["outcome"] for mutant in mine)
        survivors = [mutant for mutant in mine if done[mutant.number]["outcome"] not in ("killed", "timeout")]
        unexplained += [mutant for mutant in survivors if not any(line.startswith(mutant.row) for line in shown)]
        equal = sum(mutant not in unexplained for mutant in survivors)
        cells = (len(mine), counts["killed"], counts["timeout"], len(survivors), equal)
        table.add_row(target.file, *map(str, cells))
    console.print(table)
    for mutant in unexplained:
        console.print(f"survived: {mutant.number} {mutant}")
    for line in shown:
        if not any(line.startswith(mutant.row) for mutant in mutants):
            console.print(f"{EQUIVALENT.name}: no longer a mutant: {line}")
    return int(bool(unexplained))


if __name__ == "__main__":
    typer.run(main)
