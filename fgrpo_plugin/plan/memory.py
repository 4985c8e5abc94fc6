"""Bytes on one GPU, by part, in each phase of a step.

States: Rajbhandari et al., ZeRO, arXiv 1910.02054. Activations: Korthikanti et al., arXiv 2205.05198. Which tensors the
host keeps on the GPU in which phase was read from verl 0.9.1; see docs/plan.md.
"""

from dataclasses import dataclass, replace
from math import ceil

from fgrpo_plugin.model_shape import ModelShape
from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.setup import DTYPES, Assumptions, Setup

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
CHUNK = 512  # tokens whose logits a fused kernel holds at a time: assumed


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


def layer_activations(
    model: ModelShape,
    row: float,
    *,
    width: int = 2,
    tp: int = 1,
    sequence_parallel: bool = False,
    flash: bool = True,
    dropout: bool = False,
    eager_norms: bool = False,
    fused_gate: bool = True,
) -> float:
    """Bytes that one layer keeps for backward, per token of a row.

    With GPT's MLP, dropout and unfused attention this is Korthikanti et al.'s table 2, s b h (10 + 24/t + 5 a s/(h t))
    and, with sequence parallelism, s b h/t (34 + 5 a s/h), divided by s b.

    Args:
        model: the shape.
        row: tokens of the row.
        width: bytes of a number.
        tp: tensor-parallel size.
        sequence_parallel: norms and dropouts are split along the sequence over the tensor-parallel GPUs.
        flash: attention scores are recomputed, not kept.
        dropout: of GPT; its masks take one byte.
        eager_norms: RMS norms outside a fused kernel keep a float32 copy and the normalised input too.
        fused_gate: the gate's activation is not kept beside its input.
    """
    h, mlps = model.hidden, model.experts_per_token if model.experts else 1
    norms = 2 * ((4 + width) if eager_norms else width) * h
    inputs = 2 * width * h  # of QKV and of the MLP, whole on every tensor-parallel GPU
    whole = norms + inputs + (2 * h if dropout else 0)
    split: float = width * (2 * model.query + 2 * model.key_value)  # Q, K, V, and the output projection's input
    per_mlp = (3 if fused_gate else 4) if model.gated else 2
    split += width * mlps * per_mlp * model.intermediate
    if model.experts:
        split += width * (mlps * h + (3 * model.shared_intermediate))  # the experts' own copies of their inputs
    if not flash:
        scores = model.heads * row
        split += scores * (2 * width + 1 if dropout else width)
    return (whole / tp if sequence_parallel else whole) + split / tp


def logit_bytes(setup: Setup, *, training: bool = True) -> float:
    """Bytes per token of the vocabulary's tensors on one GPU, in training or in a forward pass alone."""
    vocab, width = setup.model.vocab, DTYPES[setup.compute_dtype]
    if setup.megatron:
        # Logits, their float32 copy that becomes the softmax, and the gradient.
        return vocab * (width * (1 + training) + 4) / setup.tp
    # flash-attn's cross-entropy writes the gradient into the logits; a temperature other than 1 copies them.
    copies = 1 if setup.temperature == 1 else 2
    if training and setup.entropy:  # the host then keeps the logits: a gradient of the loss, one of the entropy
        copies += 2
    return vocab * width * copies


def phases(setup: Setup, assumed: Assumptions) -> list[Phase]:
    """Every phase that the run has, in the order of a step."""
    found = []
    if setup.colocated:
        found.append(_generation(setup, assumed, _resident(setup)))
    if setup.generates and setup.rollout_gpus:
        found.append(replace(_generation(setup, assumed, {}), name="generation apart"))
    if setup.reference or setup.old_log_prob:
        found.append(_log_probs(setup, assumed))
    found.append(_training(setup, assumed))
    if setup.generates:
        found.append(_resharding(setup, assumed))
    return found


def peak(found: list[Phase]) -> Phase:
    """The phase that takes most."""
    return max(found, key=lambda phase: phase.total)


def trainable(setup: Setup) -> int:
    """Parameters that the optimiser sees."""
    return setup.model.lora(setup.lora_rank) if setup.lora_rank else setup.model.parameters


def stage_parameters(setup: Setup) -> tuple[float, float]:
    """Parameters on one GPU of Megatron's first or last pipeline stage: outside routed experts, and in them."""
    model = setup.model
    layers = ceil(model.layers / setup.pp)
    vocabulary = 1 if setup.pp > 1 or model.tied else 2
    dense = (layers * model.dense_layer + vocabulary * model.embedding) / setup.tp
    return dense, layers * model.experts * model.expert / setup.expert_split


def states(setup: Setup) -> dict[str, float]:
    """Weights, gradients and optimiser states on one GPU while it trains, without offloading."""
    model = setup.model
    if not setup.megatron:
        width, shards = DTYPES[setup.dtype], setup.shards
        adapters = model.lora(setup.lora_rank)
        return {
            "weights": width * (model.parameters + adapters) / shards,
            "gradients": width * trainable(setup) / shards,
            "optimiser": 2 * width * trainable(setup) / shards,
        }
    dense, routed = stage_parameters(setup)
    trained = trainable(setup) / model.parameters
    if setup.distributed_optimizer:
        shared = dense / (setup.dp * setup.cp) + routed / (setup.gpus // (setup.expert_split * setup.pp))
    else:
        shared = dense + routed
    return {
        "weights": 2 * (dense + routed) * (1 + trained if setup.lora_rank else 1),
        "gradients": 4 * trained * (dense + routed),
        "optimiser": 12 * trained * shared,
    }


def gathered(setup: Setup) -> float:
    """Bytes of FSDP's unsharded layers: one in use and one fetched ahead, in the compute dtype, and the outermost."""
    if setup.megatron:
        return 0.0
    width, model = DTYPES[setup.compute_dtype], setup.model
    layers = 2 if setup.reshard_after_forward else model.layers
    return width * (min(layers, model.layers) * model.layer + model.embedding)


def _resident(setup: Setup) -> dict[str, float]:
    """What the trainer leaves on the GPU outside its own phase."""
    kept = states(setup)
    if not setup.megatron or setup.param_offload:
        kept["gradients"] = 0.0  # FSDP's are freed after the step, Megatron's buffers go with the weights
    if setup.param_offload or (setup.step_offload and not setup.megatron):
        kept["weights"] = 0.0
    if setup.optimizer_offload or setup.step_offload:
        kept["optimiser"] = 0.0
    kept["reference"] = reference_bytes(setup)
    return kept


def reference_bytes(setup: Setup) -> float:
    """Bytes of the reference on one GPU outside its own pass; with LoRA it is the actor without adapters."""
    if not setup.reference or setup.lora_rank or not setup.megatron or setup.ref_offload:
        return 0.0
    return 2 * sum(stage_parameters(setup))


def _overhead(setup: Setup, assumed: Assumptions, parts: dict[str, float]) -> float:
    return assumed.overhead_gib * GIB + assumed.fragmentation * sum(parts.values())


def _full_layer(setup: Setup) -> float:
    return layer_activations(
        setup.model,
        setup.longest,
        width=DTYPES[setup.compute_dtype],
        tp=setup.tp,
        sequence_parallel=setup.megatron and setup.sequence_parallel,
        flash=setup.flash_attention or setup.recompute == "selective",
        eager_norms=not setup.megatron,
        fused_gate=setup.megatron,
    )


def training_activations(setup: Setup, *, in_flight: int | None = None) -> float:
    """Bytes kept for backward, per token of a micro-batch, on a GPU that holds ``in_flight`` micro-batches (1F1B).

    With full recomputation these are the layers' inputs alone; `recomputed_layer` comes on top.
    """
    width = DTYPES[setup.compute_dtype]
    layers: float = ceil(setup.model.layers / setup.pp) * (in_flight or 1)
    if setup.pp > 1 and setup.virtual_pp > 1 and in_flight and in_flight > 1:
        layers *= 1 + (setup.pp - 1) / (setup.pp * setup.virtual_pp)
    if setup.recompute != "full":
        return layers * _full_layer(setup)
    split = setup.tp if setup.megatron and setup.sequence_parallel else 1
    return layers * width * setup.model.hidden / split


def recomputed_layer(setup: Setup) -> float:
    """Bytes per token of the layer that is being recomputed, with the gradient of its widest tensor."""
    if setup.recompute != "full":
        return 0.0
    mlps = setup.model.experts_per_token if setup.model.experts else 1
    return _full_layer(setup) + 2 * DTYPES[setup.compute_dtype] * mlps * setup.model.intermediate / setup.tp


def _training(setup: Setup, assumed: Assumptions) -> Phase:
    tokens, count = setup.micro_batch()
    stages = []
    for last in (False, True) if setup.pp > 1 else (True,):
        flying = 1 if last else min(setup.pp, count)
        parts = states(setup)
        if setup.step_offload:
            parts["optimiser"] = 0.0
            if not setup.megatron:
                parts["weights"] = parts["gradients"] = 0.0
        parts["gathered layers"] = gathered(setup) + _gathered_gradients(setup)
        parts["activations"] = tokens * training_activations(setup, in_flight=flying)
        logits = _with_logits(setup, tokens) * logit_bytes(setup) if last else 0.0
        _add_larger(parts, tokens * recomputed_layer(setup), logits)
        rows = setup.on_policy_rows + setup.joined_rows
        share = setup.joined_rows / rows if rows else 0.0
        parts["preference rows"] = share * (parts["activations"] + parts.get("logits", 0.0))
        for name in ("activations", "logits"):
            parts[name] = (1 - share) * parts.get(name, 0.0)
        parts["reference"] = reference_bytes(setup)
        parts["overhead"] = _overhead(setup, assumed, parts)
        parts["KV cache"] = _awake(setup)
        stages.append(parts)
    return Phase("training", _ordered(max(stages, key=lambda parts: sum(parts.values()))), setup.gpu.memory)


def _with_logits(setup: Setup, tokens: float) -> float:
    """Tokens of a micro-batch whose logits are held at a time."""
    return min(tokens, CHUNK) if setup.fused_kernels else tokens


def _add_larger(parts: dict[str, float], layer: float, logits: float) -> None:
    """The layer at work or the logits, whichever is larger: one is freed before the other is there."""
    if layer > logits:
        parts["activations"] += layer
    else:
        parts["logits"] = logits


def _gathered_gradients(setup: Setup) -> float:
    """One layer's gradients before FSDP scatters them: in the compute dtype and in float32."""
    if setup.megatron:
        return 0.0
    adapters = setup.model.lora(setup.lora_rank) / setup.model.layers
    layer = adapters if setup.lora_rank else max(setup.model.layer, setup.model.embedding)
    return (DTYPES[setup.compute_dtype] + 4) * layer


def _awake(setup: Setup) -> float:
    """The rollout engine's memory in the trainer's phases."""
    return 0.0 if setup.rollout_sleeps or not setup.colocated else setup.utilization * setup.gpu.memory


def _log_probs(setup: Setup, assumed: Assumptions) -> Phase:
    """Forward passes of reference and actor."""
    tokens, _ = setup.micro_batch(training=False)
    parts = _resident(setup)
    if setup.old_log_prob or setup.lora_rank:
        parts["weights"] = states(setup)["weights"] if not (setup.step_offload and not setup.megatron) else 0.0
    if setup.megatron:
        parts["reference"] = 0.0 if setup.lora_rank or not setup.reference else 2 * sum(stage_parameters(setup))
    parts["gathered layers"] = gathered(setup)
    parts["activations"] = 0.0
    _add_larger(parts, tokens * _full_layer(setup), _with_logits(setup, tokens) * logit_bytes(setup, training=False))
    parts["overhead"] = _overhead(setup, assumed, parts)
    parts["KV cache"] = _awake(setup)
    return Phase("log-probs", _ordered(parts), setup.gpu.memory)


def rollout_weights(setup: Setup) -> float:
    """Bytes of the rollout engine's weights on one GPU."""
    return DTYPES[setup.rollout_dtype] * setup.model.parameters / setup.rollout_tp


def kv_bytes_per_token(setup: Setup) -> float:
    """Bytes of keys and values of one token on one GPU; heads are repeated where there are fewer than GPUs."""
    heads = max(1.0, setup.model.kv_heads / setup.rollout_tp)
    return 2 * setup.model.layers * heads * setup.model.head_dim * DTYPES[setup.rollout_dtype]


def rollout_activations(setup: Setup) -> float:
    """Bytes that the rollout engine keeps back for its largest forward pass."""
    model, width = setup.model, DTYPES[setup.rollout_dtype]
    mlps = model.experts_per_token if model.experts else 1
    per_token = width * (4 * model.hidden + (2 * model.query + 3 * mlps * model.intermediate) / setup.rollout_tp)
    return setup.max_batched_tokens * per_token + setup.max_rows * model.vocab * 8


def kv_cache(setup: Setup) -> float:
    """Bytes left for keys and values on one GPU; negative if the engine's share does not hold its weights."""
    return setup.utilization * setup.gpu.memory - rollout_weights(setup) - rollout_activations(setup)


def _generation(setup: Setup, assumed: Assumptions, resident: dict[str, float]) -> Phase:
    parts = dict(resident)
    parts["overhead"] = assumed.overhead_gib * GIB
    parts["rollout weights"] = rollout_weights(setup)
    parts["activations"] = rollout_activations(setup)
    room = kv_cache(setup)
    parts["KV cache"] = max(room, 0.0)
    shortage = max(0.0, kv_bytes_per_token(setup) * setup.longest - room)
    return Phase("generation", _ordered(parts), setup.gpu.memory, shortage)


def _resharding(setup: Setup, assumed: Assumptions) -> Phase:
    """Weights go to the rollout engine, whose KV cache is not yet there: a bucket and one whole matrix at a time."""
    parts = _resident(setup)
    if setup.megatron or setup.lora_rank or setup.engine == "fsdp":
        parts["weights"] = states(setup)["weights"]  # whole shards come back; FSDP2's one matrix at a time
    parts["rollout weights"] = rollout_weights(setup) if setup.colocated else 0.0
    whole = setup.model.embedding * (2 if setup.megatron else DTYPES[setup.dtype])
    buckets = 2 if setup.rollout_gpus else 1  # between GPUs one is filled while the other is sent
    parts["transfer buffer"] = buckets * setup.bucket_mib * 2**20 + (0 if setup.lora_rank else whole)
    parts["overhead"] = _overhead(setup, assumed, parts)
    if setup.colocated and not setup.rollout_sleeps:
        parts["KV cache"] = _awake(setup) - parts["rollout weights"]
    return Phase("resharding", _ordered(parts), setup.gpu.memory)


def host_bytes(setup: Setup) -> float:
    """Bytes of host memory that one GPU's offloaded states need."""
    off = replace(setup, param_offload=False, optimizer_offload=False, step_offload=False)
    everything, kept = states(off), _resident(setup)
    moved = everything["weights"] - kept["weights"] + everything["optimiser"] - kept["optimiser"]
    if setup.step_offload and not setup.megatron:
        moved += everything["gradients"]
    if setup.reference and not setup.lora_rank:
        if not setup.megatron:
            moved += DTYPES[setup.ref_dtype] * setup.model.parameters / setup.shards
        elif setup.ref_offload:
            moved += 2 * sum(stage_parameters(setup))
    return moved


def _ordered(parts: dict[str, float]) -> dict[str, float]:
    return {name: parts.get(name, 0.0) for name in PARTS}
