"""What to change where a plan does not fit: changes tried in a fixed order, each evaluated by the same model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.memory import kv_bytes_per_token, phases, rollout_activations, rollout_weights
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun

Changes = dict[str, Any]
LORA_RANK = 64
MOST_NODES = 128


@dataclass(frozen=True)
class Trial:
    """One change on top of those kept before it."""

    changes: Changes
    excess: float
    """Bytes missing in all phases afterwards; 0 if it fits."""
    kept: bool


@dataclass(frozen=True)
class Advice:
    """Changes that make a run fit, or the best that was found."""

    changes: Changes
    run: PlannedRun
    fits: bool
    tried: list[Trial]


def excess(run: PlannedRun, assumed: Assumptions) -> float:
    """Bytes that are missing on one GPU, summed over phases."""
    return sum(phase.excess for phase in phases(run, assumed))


def advise(run: PlannedRun, assumed: Assumptions) -> Advice:
    """Walk through `MOVES`, keep what brings the run nearer to fitting, and drop what turned out not to be needed.

    Args:
        run: does not fit.
        assumed: overheads.
    """
    current, missing, kept, tried = run, excess(run, assumed), [], []
    for move in MOVES:
        for changes in move(current, assumed):
            if not missing:
                break
            try:
                candidate = replace(current, **changes)
            except ValueError:  # contradicts the run, for example a tp that does not divide its heads
                continue
            if candidate == current:
                continue
            left = excess(candidate, assumed)
            tried.append(Trial(changes, left, left < missing))
            if left < missing:
                current, missing = candidate, left
                kept.append(changes)
    if not missing:
        kept = _needed(run, kept, assumed)
    merged = {field: value for changes in kept for field, value in changes.items()}
    return Advice(merged, replace(run, **merged), not missing, tried)


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


def _offload(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    yield {"optimizer_offload": True}
    yield {"param_offload": True}


def _utilization(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    """The share that the trainer's states leave, in steps of 5 %, or the least that holds weights and some rows."""
    short = [phase for phase in phases(run, assumed) if phase.name.startswith("generation") and not phase.fits]
    if not short:
        return
    generation = max(short, key=lambda phase: phase.excess)
    engine = ("rollout weights", "KV cache", "activations")
    left = (run.gpu.memory - sum(v for part, v in generation.parts.items() if part not in engine)) / run.gpu.memory
    least = rollout_weights(run) + rollout_activations(run) + kv_bytes_per_token(run) * run.longest
    least /= run.gpu.memory
    for share in (floor(left * 20) / 20, ceil(least * 20) / 20):
        if 0 < share <= 0.9:
            yield {"utilization": round(share, 2)}


def _smaller_micro_batches(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    if not run.dynamic_batch:
        rows = max(run.micro_rows, run.log_prob_micro_rows)
        while rows > 1:
            rows = ceil(rows / 2)
            yield {
                "micro_rows": min(rows, run.micro_rows),
                "log_prob_micro_rows": min(rows, run.log_prob_micro_rows),
            }
        return
    tokens = max(run.tokens_per_gpu, run.log_prob_tokens_per_gpu)
    least = ceil(run.longest / (run.sp * run.cp))
    while tokens > least:
        tokens = max(ceil(tokens / 2), least)
        yield {
            "tokens_per_gpu": min(tokens, run.tokens_per_gpu),
            "log_prob_tokens_per_gpu": min(tokens, run.log_prob_tokens_per_gpu),
        }


def _step_offload(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    if run.engine != "fsdp":
        yield {"step_offload": True}


def _split_rows(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    """FSDP: a row over several GPUs, and micro-batches as long as before in all."""
    size = run.sp * 2
    while not run.megatron and size <= run.gpus_per_node:
        tokens = max(ceil(run.longest / size), min(run.tokens_per_gpu, run.longest * run.sp // size))
        yield {"sp": size, "tokens_per_gpu": tokens, "log_prob_tokens_per_gpu": tokens}
        size *= 2


def _split_layers(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    limits = {"rollout_tp": run.gpus_per_node}
    if run.megatron:
        limits |= {"tp": run.gpus_per_node, "ep": run.model.experts}
    for field, limit in limits.items():
        size = getattr(run, field) * 2
        while size <= limit:
            yield {field: size}
            size *= 2


def _pipeline(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    size = run.pp * 2
    while run.megatron and not run.uneven_stages and size <= min(run.gpus, run.model.layers):
        yield {"pp": size}
        size *= 2


def _more_nodes(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    nodes = run.nodes * 2
    while nodes <= MOST_NODES:
        yield {"nodes": nodes}
        nodes *= 2


def _always(**changes: Any) -> Callable[[PlannedRun, Assumptions], Iterator[Changes]]:
    def move(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
        if any(getattr(run, field) != value for field, value in changes.items()):
            yield changes

    return move


def _lora(run: PlannedRun, assumed: Assumptions) -> Iterator[Changes]:
    if not run.lora_rank:
        yield {"lora_rank": LORA_RANK}


MOVES: tuple[Callable[[PlannedRun, Assumptions], Iterator[Changes]], ...] = (
    _utilization,
    _offload,
    _utilization,
    _always(recompute="full"),
    _smaller_micro_batches,
    _always(rollout_sleeps=True),
    _split_layers,
    _utilization,
    lambda run, assumed: _always(shard=-1)(run, assumed) if not run.megatron else iter(()),
    _split_rows,
    _smaller_micro_batches,
    lambda run, assumed: _always(ref_offload=True)(run, assumed) if run.megatron else iter(()),
    _step_offload,
    _pipeline,
    _lora,
    _utilization,
    _more_nodes,
    _utilization,
)
"""In the order in which they cost: settings, then time, then another method, then more GPUs."""


def shortfall(run: PlannedRun, assumed: Assumptions) -> list[str]:
    """One sentence for each phase that does not fit."""
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
    return said
