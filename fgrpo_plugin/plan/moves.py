"""Changes of a run that take less memory, in the order in which they cost."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from fgrpo_plugin.plan.memory import (
    host_excess,
    kv_bytes_per_token,
    phases,
    rollout_activations,
    rollout_weights,
)
from fgrpo_plugin.plan.planned_run import DTYPES, Assumptions, PlannedRun

Changes = dict[str, Any]
LORA_RANK = 64
MOST_GPUS = 4
"""More GPUs are advised up to this multiple of those that were asked for, beyond it another kind of GPU."""
NODE = 8
"""GPUs of a full node: a smaller one is filled before there is a second."""


@dataclass(frozen=True)
class Setting:
    """What a search for advice starts from: the run as asked for, and what is assumed."""

    asked: PlannedRun
    assumed: Assumptions


Move = Callable[[PlannedRun, Setting], Iterator[Changes]]


def _offload(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    yield {"optimizer_offload": True}
    yield {"param_offload": True}


def _utilization(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    """The share that the trainer's states leave, in steps of 5 %, or the least that holds weights and some rows."""
    short = [phase for phase in phases(run, at.assumed) if phase.name.startswith("generation") and not phase.fits]
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


def _smaller_micro_batches(run: PlannedRun, at: Setting) -> Iterator[Changes]:
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


def _back_to_the_gpu(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    if host_excess(run, at.assumed) and not run.step_offload:
        yield {"param_offload": False}
        yield {"optimizer_offload": False}


def _smaller_reference(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    """Keep the reference's weights in the type in which it computes: that saves host memory alone."""
    computes_narrower = DTYPES[run.compute_dtype] < DTYPES[run.ref_dtype]
    if host_excess(run, at.assumed) and not run.megatron and run.reference and computes_narrower:
        yield {"ref_dtype": run.compute_dtype}


def _shard_over_all(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    if not run.megatron and run.shard != -1:
        yield {"shard": -1}


def _reference_to_host(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    if run.megatron and not run.ref_offload:
        yield {"ref_offload": True}


def _step_offload(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    if run.engine != "fsdp":
        yield {"step_offload": True}


def _split_rows(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    """Split each row over more GPUs (FSDP); micro-batches stay as long in all."""
    size = run.sp * 2
    while not run.megatron and size <= run.gpus_per_node:
        tokens = max(ceil(run.longest / size), min(run.tokens_per_gpu, run.longest * run.sp // size))
        yield {"sp": size, "tokens_per_gpu": tokens, "log_prob_tokens_per_gpu": tokens}
        size *= 2


def _split_layers(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    limits = {"rollout_tp": run.gpus_per_node}
    if run.megatron:
        limits |= {"tp": run.gpus_per_node, "ep": run.model.experts}
    for field, limit in limits.items():
        size = getattr(run, field) * 2
        while size <= limit:
            yield {field: size}
            size *= 2


def _pipeline(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    size = run.pp * 2
    while run.megatron and not run.uneven_stages and size <= min(run.gpus, run.model.layers):
        yield {"pp": size}
        size *= 2


def _more_gpus(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    most = MOST_GPUS * at.asked.gpus
    size = run.gpus_per_node * 2
    while size <= NODE and run.nodes * size <= most:
        yield {"gpus_per_node": size}
        size *= 2
    filled = max(run.gpus_per_node, size // 2)
    nodes = run.nodes * 2
    while nodes * filled <= most:
        yield {"nodes": nodes, "gpus_per_node": filled}
        nodes *= 2


def _always(**changes: Any) -> Move:
    def move(run: PlannedRun, at: Setting) -> Iterator[Changes]:
        if any(getattr(run, field) != value for field, value in changes.items()):
            yield changes

    return move


def _narrower_states(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    if not run.megatron and DTYPES[run.dtype] > 2:
        yield {"dtype": "bf16"}


def _lora(run: PlannedRun, at: Setting) -> Iterator[Changes]:
    if not run.lora_rank:
        yield {"lora_rank": LORA_RANK}


FREE, PRECISION, METHOD, GPUS = "nothing", "precision", "method", "GPUs"
STAGES: tuple[tuple[str, tuple[Move, ...]], ...] = (
    (FREE, (_utilization, _always(rollout_sleeps=True), _shard_over_all, _smaller_reference)),
    ("copies", (_offload, _reference_to_host, _utilization)),
    ("micro-batches", (_smaller_micro_batches,)),
    ("time", (_always(recompute="full"), _split_layers, _utilization, _split_rows, _smaller_micro_batches)),
    ("time", (_step_offload, _pipeline, _back_to_the_gpu, _utilization)),
    (PRECISION, (_narrower_states, _utilization)),
    (METHOD, (_lora, _utilization)),
    (GPUS, (_more_gpus, _utilization)),
)
"""What a change costs, and the changes that cost it: in the order in which people would take them.

`_utilization` is fitted anew after each, since it takes what the trainer leaves.
"""
