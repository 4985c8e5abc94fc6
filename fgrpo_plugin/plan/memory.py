"""Bytes on one GPU, by part, in each phase of a step.

States: Rajbhandari et al., ZeRO, arXiv 1910.02054. Activations: Korthikanti et al., arXiv 2205.05198. Which tensors
verl keeps on the GPU in which phase was read from its pinned release; see docs/plan.md.
"""

from dataclasses import dataclass, replace
from math import ceil

from fgrpo_plugin.plan.activations import (
    full_layer,
    logit_bytes,
    recomputed_layer,
    tokens_with_logits,
    training_activations,
)
from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.planned_run import DTYPES, NODE_GIB_A_GPU, Assumptions, PlannedRun

PARTS = (
    "weights",
    "gathered layers",
    "gradients",
    "optimiser",
    "activations",
    "logits",
    "preference rows",
    "reference",
    "rollout weights",
    "KV cache",
    "transfer buffer",
    "overhead",
)


@dataclass(frozen=True)
class Phase:
    """Memory of one GPU at the peak of one phase."""

    name: str
    parts: dict[str, float]
    """Part -> bytes."""
    capacity: float
    """Bytes of the GPU."""
    shortage: float = 0.0
    """Bytes that the rollout engine's share lacks for its weights and one row."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it."""
        return self.excess == 0

    @property
    def excess(self) -> float:
        """Bytes that are missing; 0 if it fits."""
        return max(0.0, self.total - self.capacity) + self.shortage


def phases(run: PlannedRun, assumed: Assumptions) -> list[Phase]:
    """Every phase that the run has, in the order of a step."""
    found = []
    if run.colocated:
        found.append(_generation(run, assumed, _resident(run)))
    if run.generates and run.rollout_gpus:
        found.append(replace(_generation(run, assumed, {}), name="generation apart"))
    if run.reference or run.old_log_prob:
        found.append(_log_probs(run, assumed))
    found.append(_training(run, assumed))
    if run.generates:
        found.append(_resharding(run, assumed))
    return found


def trainable(run: PlannedRun) -> int:
    """Parameters that the optimiser sees."""
    return run.model.lora(run.lora_rank) if run.lora_rank else run.model.parameters


def stage_parameters(run: PlannedRun) -> tuple[float, float]:
    """Parameters on one GPU of Megatron's first or last pipeline stage: outside routed experts, and in them."""
    model = run.model
    layers = ceil(model.layers / run.pp)
    vocabulary = 1 if run.pp > 1 or model.tied else 2
    dense = (layers * model.dense_layer + vocabulary * model.embedding) / run.tp
    return dense, layers * model.experts * model.expert / run.expert_split


def states(run: PlannedRun) -> dict[str, float]:
    """Weights, gradients and optimiser states on one GPU while it trains, without offloading."""
    model = run.model
    if not run.megatron:
        width, shards = DTYPES[run.dtype], run.shards
        adapters = model.lora(run.lora_rank)
        return {
            "weights": width * (model.parameters + adapters) / shards,
            "gradients": width * trainable(run) / shards,
            "optimiser": 2 * width * trainable(run) / shards,
        }
    dense, routed = stage_parameters(run)
    trained = trainable(run) / model.parameters
    if run.distributed_optimizer:
        shared = dense / (run.dp * run.cp) + routed / (run.gpus // (run.expert_split * run.pp))
    else:
        shared = dense + routed
    return {
        "weights": 2 * (dense + routed) * (1 + trained if run.lora_rank else 1),
        "gradients": 4 * trained * (dense + routed),
        "optimiser": 12 * trained * shared,
    }


def gathered(run: PlannedRun) -> float:
    """Bytes of FSDP's unsharded layers: one in use and one fetched ahead, in the compute dtype, and the outermost."""
    if run.megatron:
        return 0.0
    width, model = DTYPES[run.compute_dtype], run.model
    layers = 2 if run.reshard_after_forward else model.layers
    return width * (min(layers, model.layers) * model.layer + model.embedding)


def _resident(run: PlannedRun) -> dict[str, float]:
    """Return what the trainer leaves on the GPU outside its own phase."""
    kept = states(run)
    if not run.megatron or run.param_offload:
        kept["gradients"] = 0.0  # FSDP's are freed after the step, Megatron's buffers go with the weights
    if run.param_offload or (run.step_offload and not run.megatron):
        kept["weights"] = 0.0
    if run.optimizer_offload or run.step_offload:
        kept["optimiser"] = 0.0
    kept["reference"] = reference_bytes(run)
    return kept


def reference_bytes(run: PlannedRun) -> float:
    """Bytes of the reference on one GPU outside its own pass; with LoRA it is the actor without adapters."""
    if not run.reference or run.lora_rank or not run.megatron or run.ref_offload:
        return 0.0
    return 2 * sum(stage_parameters(run))


def _overhead(run: PlannedRun, assumed: Assumptions, parts: dict[str, float]) -> float:
    return assumed.overhead_gib * GIB + assumed.fragmentation * sum(parts.values())


def _training(run: PlannedRun, assumed: Assumptions) -> Phase:
    tokens, count = run.micro_batch()
    stages = []
    for last in (False, True) if run.pp > 1 else (True,):
        flying = 1 if last else min(run.pp, count)
        parts = states(run)
        if run.step_offload:
            parts["optimiser"] = 0.0
            if not run.megatron:
                parts["weights"] = parts["gradients"] = 0.0
        parts["gathered layers"] = gathered(run) + _gathered_gradients(run)
        parts["activations"] = tokens * training_activations(run, in_flight=flying)
        logits = tokens_with_logits(run, tokens) * logit_bytes(run) if last else 0.0
        _add_larger(parts, tokens * recomputed_layer(run), logits)
        rows = run.on_policy_rows + run.joined_rows
        share = run.joined_rows / rows if rows else 0.0
        parts["preference rows"] = share * (parts["activations"] + parts.get("logits", 0.0))
        for name in ("activations", "logits"):
            parts[name] = (1 - share) * parts.get(name, 0.0)
        parts["reference"] = reference_bytes(run)
        parts["overhead"] = _overhead(run, assumed, parts)
        parts["KV cache"] = _awake(run)
        stages.append(parts)
    return Phase("training", _ordered(max(stages, key=lambda parts: sum(parts.values()))), run.gpu.memory)


def _add_larger(parts: dict[str, float], layer: float, logits: float) -> None:
    """The layer at work or the logits, whichever is larger: one is freed before the other is there."""
    if layer > logits:
        parts["activations"] += layer
    else:
        parts["logits"] = logits


def _gathered_gradients(run: PlannedRun) -> float:
    """One layer's gradients before FSDP scatters them: in the compute dtype and in float32."""
    if run.megatron:
        return 0.0
    adapters = run.model.lora(run.lora_rank) / run.model.layers
    layer = adapters if run.lora_rank else max(run.model.layer, run.model.embedding)
    return (DTYPES[run.compute_dtype] + 4) * layer


def _awake(run: PlannedRun) -> float:
    """The rollout engine's memory in the trainer's phases."""
    return 0.0 if run.rollout_sleeps or not run.colocated else run.utilization * run.gpu.memory


def _log_probs(run: PlannedRun, assumed: Assumptions) -> Phase:
    """Forward passes of reference and actor."""
    tokens, _ = run.micro_batch(training=False)
    parts = _resident(run)
    if run.old_log_prob or run.lora_rank:
        parts["weights"] = states(run)["weights"] if not (run.step_offload and not run.megatron) else 0.0
    if run.megatron:
        parts["reference"] = 0.0 if run.lora_rank or not run.reference else 2 * sum(stage_parameters(run))
    parts["gathered layers"] = gathered(run)
    parts["activations"] = 0.0
    _add_larger(parts, tokens * full_layer(run), tokens_with_logits(run, tokens) * logit_bytes(run, training=False))
    parts["overhead"] = _overhead(run, assumed, parts)
    parts["KV cache"] = _awake(run)
    return Phase("log-probs", _ordered(parts), run.gpu.memory)


def rollout_weights(run: PlannedRun) -> float:
    """Bytes of the rollout engine's weights on one GPU."""
    return DTYPES[run.rollout_dtype] * run.model.parameters / run.rollout_tp


def kv_bytes_per_token(run: PlannedRun) -> float:
    """Bytes of keys and values of one token on one GPU; heads are repeated where there are fewer than GPUs."""
    heads = max(1.0, run.model.kv_heads / run.rollout_tp)
    return 2 * run.model.layers * heads * run.model.head_dim * DTYPES[run.rollout_dtype]


def rollout_activations(run: PlannedRun) -> float:
    """Bytes that the rollout engine keeps back for its largest forward pass."""
    model, width = run.model, DTYPES[run.rollout_dtype]
    mlps = model.experts_per_token if model.experts else 1
    per_token = width * (4 * model.hidden + (2 * model.query + 3 * mlps * model.intermediate) / run.rollout_tp)
    return run.max_batched_tokens * per_token + run.max_rows * model.vocab * 8


def kv_cache(run: PlannedRun) -> float:
    """Bytes left for keys and values on one GPU; negative if the engine's share does not hold its weights."""
    return run.utilization * run.gpu.memory - rollout_weights(run) - rollout_activations(run)


def _generation(run: PlannedRun, assumed: Assumptions, resident: dict[str, float]) -> Phase:
    parts = dict(resident)
    parts["overhead"] = assumed.overhead_gib * GIB
    parts["rollout weights"] = rollout_weights(run)
    parts["activations"] = rollout_activations(run)
    room = kv_cache(run)
    parts["KV cache"] = max(room, 0.0)
    shortage = max(0.0, kv_bytes_per_token(run) * run.longest - room)
    return Phase("generation", _ordered(parts), run.gpu.memory, shortage)


def _resharding(run: PlannedRun, assumed: Assumptions) -> Phase:
    """Weights go to the rollout engine, whose KV cache is not yet there: a bucket and one whole matrix at a time."""
    parts = _resident(run)
    if run.megatron or run.lora_rank or run.engine == "fsdp":
        parts["weights"] = states(run)["weights"]  # whole shards come back; FSDP2's one matrix at a time
    parts["rollout weights"] = rollout_weights(run) if run.colocated else 0.0
    whole = run.model.embedding * (2 if run.megatron else DTYPES[run.dtype])
    buckets = 2 if run.rollout_gpus else 1  # between GPUs one is filled while the other is sent
    parts["transfer buffer"] = buckets * run.bucket_mib * 2**20 + (0 if run.sends_adapters else whole)
    parts["overhead"] = _overhead(run, assumed, parts)
    if run.colocated and not run.rollout_sleeps:
        parts["KV cache"] = _awake(run) - parts["rollout weights"]
    return Phase("resharding", _ordered(parts), run.gpu.memory)


def host_bytes(run: PlannedRun) -> float:
    """Bytes of host memory that one GPU needs for offloaded states, the reference and weights of a sleeping engine."""
    off = replace(run, param_offload=False, optimizer_offload=False, step_offload=False)
    everything, kept = states(off), _resident(run)
    moved = everything["weights"] - kept["weights"] + everything["optimiser"] - kept["optimiser"]
    if run.step_offload and not run.megatron:
        moved += everything["gradients"]
    if run.reference and not run.lora_rank:
        if not run.megatron:
            moved += DTYPES[run.ref_dtype] * run.model.parameters / run.shards
        elif run.ref_offload:
            moved += 2 * sum(stage_parameters(run))
    if run.sends_adapters and run.rollout_sleeps and run.colocated:
        moved += rollout_weights(run)  # vLLM's sleep level 1: verl could not send base weights again
    return moved


def node_memory(run: PlannedRun, assumed: Assumptions) -> float:
    """Bytes of a node's own memory."""
    return (assumed.node_memory_gib or NODE_GIB_A_GPU * run.gpus_per_node) * GIB


def host_excess(run: PlannedRun, assumed: Assumptions) -> float:
    """Bytes that a node's own memory lacks for what its GPUs leave there; 0 if it fits."""
    return max(0.0, host_bytes(run) * run.gpus_per_node - node_memory(run, assumed))


def _ordered(parts: dict[str, float]) -> dict[str, float]:
    return {name: parts.get(name, 0.0) for name in PARTS}
