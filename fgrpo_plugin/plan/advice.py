"""What to change where a plan does not fit: changes tried in a fixed order, each evaluated by the same model."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.memory import host_bytes, host_excess, node_memory, phases
from fgrpo_plugin.plan.moves import STAGES, Changes, Setting
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun


@dataclass(frozen=True)
class Trial:
    """One change on top of those kept before it."""

    changes: Changes
    stage: str
    """What it costs: a name of `STAGES`."""
    excess: float
    """Bytes missing afterwards, as in `excess`; 0 if it fits."""
    kept: bool


@dataclass(frozen=True)
class Advice:
    """Changes that make a run fit, or the best that was found."""

    changes: Changes
    run: PlannedRun
    fits: bool
    tried: list[Trial]
    refused: list[tuple[Changes, str]]
    """Changes that would fit but that the run would refuse, and its words."""


def excess(run: PlannedRun, assumed: Assumptions) -> float:
    """Bytes that are missing on one GPU, summed over phases, and its share of those that its node lacks."""
    return sum(phase.excess for phase in phases(run, assumed)) + host_excess(run, assumed) / run.gpus_per_node


def advise(run: PlannedRun, assumed: Assumptions, refuses: Callable[[Changes], str | None] | None = None) -> Advice:
    """Walk through `STAGES`, keep what brings the run nearer to fitting, and drop what turned out not to be needed.

    Args:
        run: does not fit.
        assumed: overheads.
        refuses: changes -> why the run would not start with them, or None. What is refused is left out, and the others
            are tried again.
    """
    banned: list[Changes] = []
    refused: list[tuple[Changes, str]] = []
    while True:
        found = _search(run, assumed, banned)
        if refuses is None or not found.changes or not (why := refuses(found.changes)):
            return replace(found, refused=refused)
        culprit = _culprit(found.changes, refuses)
        banned.append(culprit)
        refused.append((culprit, why))


def _culprit(changes: Changes, refuses: Callable[[Changes], str | None]) -> Changes:
    """The first change with which those before it are refused."""
    so_far: Changes = {}
    for field, value in changes.items():
        so_far[field] = value
        if refuses(so_far):
            return {field: value}
    return changes


def _search(run: PlannedRun, assumed: Assumptions, banned: list[Changes]) -> Advice:
    current, missing, tried = run, excess(run, assumed), []
    kept: list[Changes] = []
    at = Setting(run, assumed)
    for stage, moves in STAGES:
        for move in moves:
            for changes in move(current, at):
                if not missing:
                    break
                if any(without.items() <= changes.items() for without in banned):
                    continue
                try:
                    candidate = replace(current, **changes)
                except ValueError:  # contradicts the run, for example a tp that does not divide its heads
                    continue
                if candidate == current:
                    continue
                left = excess(candidate, assumed)
                tried.append(Trial(changes, stage, left, left < missing))
                if left < missing:
                    current, missing = candidate, left
                    kept.append(changes)
    if not missing:
        kept = _needed(run, kept, assumed)
    merged = {field: value for changes in kept for field, value in changes.items()}
    return Advice(merged, replace(run, **merged), not missing, tried, [])


def _needed(run: PlannedRun, kept: list[Changes], assumed: Assumptions) -> list[Changes]:
    """The changes without which it no longer fits; the costly ones, which come last, are dropped first.

    A setting may be there with several values, of which the last counts: once one is gone, the others are tried again.
    """
    for changes in reversed(kept):
        rest = [other for other in kept if other is not changes]
        merged = {field: value for other in rest for field, value in other.items()}
        try:
            without = excess(replace(run, **merged), assumed)
        except ValueError:
            continue
        if not without:
            return _needed(run, rest, assumed)
    return kept


def shortfall(run: PlannedRun, assumed: Assumptions) -> list[str]:
    """One sentence for each phase that does not fit, and one for a node's own memory."""
    said = []
    for phase in phases(run, assumed):
        if phase.total > phase.capacity:
            over = (phase.total - phase.capacity) / GIB
            said.append(f"{phase.name}: {over:.1f} GiB more than the {run.gpu.memory_gib:g} of a GPU.")
        if phase.shortage:
            said.append(
                f"{phase.name}: gpu_memory_utilization={run.utilization} is "
                f"{run.utilization * run.gpu.memory_gib:.1f} GiB; weights and one row need "
                f"{phase.shortage / GIB:.1f} GiB more."
            )
    if host_excess(run, assumed):
        said.append(
            f"host memory: a node needs {host_bytes(run) * run.gpus_per_node / GIB:.0f} GiB and has "
            f"{node_memory(run, assumed) / GIB:.0f}."
        )
    return said
