"""Kills parts of f-GRPO and f-HAL runs at random moments, again and again, and looks at what the runs become.

    python -m tests.soak build/soak                  # 20 kills; stopped and started again, it goes on
    python -m tests.soak build/soak --kills 2 --seed 3

Two runs of verl on the CPU in deterministic mode, f-GRPO and f-HAL, each killed and started again in turn; then each is
let to its end. After every kill: the run ends within 60 s with a non-zero exit code and a sentence that names the part,
and 60 s later no process and no shared memory of it is left. Each start goes on from the newest checkpoint and says so.
Every step that any part of a run has logged, and the parameters at its end, are those of a run that nobody has
disturbed, to the last bit; of f-HAL also the preference rows drawn. Each finished kill is a line of results.jsonl.
"""

import json
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from fgrpo_plugin.quickstart.summary import read_metrics
from tests.e2e.host_runs import DRIVER, PARTS, Host, of_command, parameters, state, steps, unequal

LOSS = "actor_rollout_ref.actor.policy_loss.f_divergence"
KINDS = {"f_grpo": (f"{LOSS}.lam=0",), "f_hal": ()}
MOST_STEPS_A_START = 2


def plan(seed: int, kills: int) -> list[tuple[str, str, int, float]]:
    """Which run, which part, how many steps after its start, and how many seconds after that step: for each kill.

    Every part once before any part twice.
    """
    draw = random.Random(seed)
    parts: list[str] = []
    while len(parts) < kills:
        parts += draw.sample(list(PARTS), len(PARTS))
    return [
        (list(KINDS)[number % 2], parts[number], draw.randint(1, MOST_STEPS_A_START), draw.uniform(0, 4))
        for number in range(kills)
    ]


def newest_checkpoint(run: Path) -> int:
    """The step that a start goes on from; 0 where there is none."""
    tracker = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.is_file() else 0


def check_start(log: str, step: int) -> None:
    """A start says from which checkpoint it goes on."""
    assert step == 0 or f"global_step_{step}" in log, log[-2000:]


def kill(host: Host, kind: str, part: str, after: int, delay: float, total: int) -> dict:
    """One kill; what it was, and how many steps its run has logged."""
    run, began = host.folder / kind, time.monotonic()
    start = newest_checkpoint(run)
    log_before = (run / "train.log").stat().st_size if (run / "train.log").exists() else 0
    host.part_dies(part, start + after, kind, *KINDS[kind], delay=delay, total=total)
    log = (run / "train.log").read_text()[log_before:]
    assert part == DRIVER or part in of_command(log)[-2000:], f"{part} is not named: {log[-3000:]}"
    check_start(log, start)
    logged = keep_steps(run)
    return {
        "run": kind,
        "part": part,
        "from step": start,
        "killed after step": logged,
        "delay": round(delay, 1),
        "seconds": round(time.monotonic() - began),
    }


def keep_steps(run: Path) -> int:
    """Append what this start has logged to the run's steps; the last of them."""
    rows = read_metrics(run / "metrics.jsonl")
    with (run / "logged.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return int(rows[-1]["step"])


def compare(host: Host, kind: str, total: int) -> int:
    """Let a killed run end, and compare all of it with an undisturbed one; how many logged steps were equal."""
    run, whole = host.folder / kind, host.folder / f"{kind}_undisturbed"
    timeout = 600 + 20.0 * total
    if newest_checkpoint(run) < total:
        host.finish(kind, *KINDS[kind], total=total, timeout=timeout)
        keep_steps(run)
    if newest_checkpoint(whole) < total:
        shutil.rmtree(whole, ignore_errors=True)
        host.finish(whole.name, *KINDS[kind], total=total, timeout=timeout)
    every = host.folder / f"{kind}_logged"
    every.mkdir(exist_ok=True)
    shutil.copy(run / "logged.jsonl", every / "metrics.jsonl")
    assert unequal(whole, every) == {}
    found, expected = parameters(run, total), parameters(whole, total)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if kind == "f_hal":
        assert state(run, total) == state(whole, total)
    logged = [step for step, _ in steps(every)]
    unlogged = set(range(1, total + 1)) - set(logged)
    went_on_from = map(int, re.findall(r"continues from \S*global_step_(\d+)", (run / "train.log").read_text()))
    assert unlogged <= set(went_on_from), unlogged  # killed once it was saved, before verl logged it
    return len(logged)


def main(
    folder: Path,
    kills: Annotated[int, typer.Option(help="How many parts are killed.")] = 20,
    seed: Annotated[int, typer.Option(help="Which parts, and when.")] = 0,
) -> None:
    """Kill parts of two runs, and compare them with undisturbed ones."""
    folder.mkdir(parents=True, exist_ok=True)
    host, results = Host(folder.resolve()), folder / "results.jsonl"
    total = MOST_STEPS_A_START * -(-kills // 2) + 2  # a start gains no more
    done = results.read_text().splitlines() if results.exists() else []
    for number, (kind, part, after, delay) in enumerate(plan(seed, kills)):
        if number >= len(done):
            found = kill(host, kind, part, after, delay, total)
            with results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{number + 1} of {kills}: {found}", flush=True)
    for kind in KINDS:
        print(
            f"{kind}: {compare(host, kind, total)} logged steps of {total} equal to the undisturbed run's", flush=True
        )


if __name__ == "__main__":
    sys.exit(typer.run(main))
