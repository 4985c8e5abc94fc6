"""What to change where a plan does not fit: changes tried in a fixed order, each evaluated by the same model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.memory import kv_bytes_per_token, phases, rollout_activations, rollout_weights
from fgrpo_plugin.plan.setup import Assumptions, Setup

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
    """Changes that make a setup fit, or the best that was found."""

    changes: Changes
    setup: Setup
    fits: bool
    tried: list[Trial]


def excess(setup: Setup, assumed: Assumptions) -> float:
    """Bytes that are missing on one GPU, summed over phases."""
    return sum(phase.excess for phase in phases(setup, assumed))


def advise(setup: Setup, assumed: Assumptions) -> Advice:
    """Walk through `MOVES`, keep what brings the setup nearer to fitting, and drop what turned out not to be needed.

    Args:
        setup: does not fit.
        assumed: overheads.
    """
    current, missing, kept, tried = setup, excess(setup, assumed), [], []
    for move in MOVES:
        for changes in move(current, assumed):
            if not missing:
                break
            try:
                candidate = replace(current, **changes)
            except ValueError:  # contradicts the setup, for example a tp that does not divide its heads
                continue
            if candidate == current:
                continue
            left = excess(candidate, assumed)
            tried.append(Trial(changes, left, left < missing))
            if left < missing:
                current, missing = candidate, left
                kept.append(changes)
    if not missing:
        kept = _needed(setup, kept, assumed)
    merged = {field: value for changes in kept for field, value in changes.items()}
    return Advice(merged, replace(setup, **merged), not missing, tried)


def _needed(setup: Setup, kept: list[Changes], assumed: Assumptions) -> list[Changes]:
    """The changes without which it no longer fits; the costly ones, which come last, are dropped first.

    A setting may be there with several values, of which the last counts: once one is gone, the others are tried again.
    """
    for changes in reversed(kept):
        rest = [other for other in kept if other is not changes]
        merged = {field: value for other in rest for field, value in other.items()}
        try:
            without = excess(replace(setup, **merged), assumed)
        except ValueError:
            continue
        if not without:
            return _needed(setup, rest, assumed)
    return kept


def _offload(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    yield {"optimizer_offload": True}
    yield {"param_offload": True}


def _utilization(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    """The share that the trainer's states leave, in steps of 5 %, or the least that holds weights and some rows."""
    short = [phase for phase in phases(setup, assumed) if phase.name.startswith("generation") and not phase.fits]
    if not short:
        return
    generation = max(short, key=lambda phase: phase.excess)
    engine = ("rollout weights", "KV cache", "activations")
    left = (setup.gpu.memory - sum(v for part, v in generation.parts.items() if part not in engine)) / setup.gpu.memory
    least = rollout_weights(setup) + rollout_activations(setup) + kv_bytes_per_token(setup) * setup.longest
    least /= setup.gpu.memory
    for share in (floor(left * 20) / 20, ceil(least * 20) / 20):
        if 0 < share <= 0.9:
            yield {"utilization": round(share, 2)}


def _smaller_micro_batches(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    if not setup.dynamic_batch:
        rows = max(setup.micro_rows, setup.log_prob_micro_rows)
        while rows > 1:
            rows = ceil(rows / 2)
            yield {
                "micro_rows": min(rows, setup.micro_rows),
                "log_prob_micro_rows": min(rows, setup.log_prob_micro_rows),
            }
        return
    tokens = max(setup.tokens_per_gpu, setup.log_prob_tokens_per_gpu)
    least = ceil(setup.longest / (setup.sp * setup.cp))
    while tokens > least:
        tokens = max(ceil(tokens / 2), least)
        yield {
            "tokens_per_gpu": min(tokens, setup.tokens_per_gpu),
            "log_prob_tokens_per_gpu": min(tokens, setup.log_prob_tokens_per_gpu),
        }


def _step_offload(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    if setup.engine != "fsdp":
        yield {"step_offload": True}


def _split_rows(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    """FSDP: a row over several GPUs, and micro-batches as long as before in all."""
    size = setup.sp * 2
    while not setup.megatron and size <= setup.gpus_per_node:
        tokens = max(ceil(setup.longest / size), min(setup.tokens_per_gpu, setup.longest * setup.sp // size))
        yield {"sp": size, "tokens_per_gpu": tokens, "log_prob_tokens_per_gpu": tokens}
        size *= 2


def _split_layers(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    limits = {"rollout_tp": setup.gpus_per_node}
    if setup.megatron:
        limits |= {"tp": setup.gpus_per_node, "ep": setup.model.experts}
    for field, limit in limits.items():
        size = getattr(setup, field) * 2
        while size <= limit:
            yield {field: size}
            size *= 2


def _pipeline(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    size = setup.pp * 2
    while setup.megatron and not setup.uneven_stages and size <= min(setup.gpus, setup.model.layers):
        yield {"pp": size}
        size *= 2


def _more_nodes(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    nodes = setup.nodes * 2
    while nodes <= MOST_NODES:
        yield {"nodes": nodes}
        nodes *= 2


def _always(**changes: Any) -> Callable[[Setup, Assumptions], Iterator[Changes]]:
    def move(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
        if any(getattr(setup, field) != value for field, value in changes.items()):
            yield changes

    return move


def _lora(setup: Setup, assumed: Assumptions) -> Iterator[Changes]:
    if not setup.lora_rank:
        yield {"lora_rank": LORA_RANK}


MOVES: tuple[Callable[[Setup, Assumptions], Iterator[Changes]], ...] = (
    _utilization,
    _offload,
    _utilization,
    _always(recompute="full"),
    _smaller_micro_batches,
    _always(rollout_sleeps=True),
    _split_layers,
    _utilization,
    lambda setup, assumed: _always(shard=-1)(setup, assumed) if not setup.megatron else iter(()),
    _split_rows,
    _smaller_micro_batches,
    lambda setup, assumed: _always(ref_offload=True)(setup, assumed) if setup.megatron else iter(()),
    _step_offload,
    _pipeline,
    _lora,
    _utilization,
    _more_nodes,
    _utilization,
)
"""In the order in which they cost: settings, then time, then another method, then more GPUs."""


def shortfall(setup: Setup, assumed: Assumptions) -> list[str]:
    """One sentence for each phase that does not fit."""
    said = []
    for phase in phases(setup, assumed):
        if phase.total > phase.capacity:
            over = (phase.total - phase.capacity) / GIB
            said.append(f"{phase.name}: {over:.1f} GiB more than the {setup.gpu.memory_gib:g} of a GPU.")
        if phase.shortage:
            said.append(
                f"{phase.name}: gpu_memory_utilization={setup.utilization} is "
                f"{setup.utilization * setup.gpu.memory_gib:.1f} GiB; weights and one row need "
                f"{phase.shortage / GIB:.1f} GiB more."
            )
    return said
