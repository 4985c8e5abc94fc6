"""What a micro-batch leaves on a GPU for its backward pass: layers' activations and logits."""

from math import ceil

from fgrpo_plugin.model_shape import ModelShape
from fgrpo_plugin.plan.planned_run import DTYPES, PlannedRun

CHUNK = 512  # tokens whose logits a fused kernel holds at a time: assumed


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


def logit_bytes(run: PlannedRun, *, training: bool = True) -> float:
    """Bytes per token of the vocabulary's tensors on one GPU, in training or in a forward pass alone."""
    vocab, width = run.model.vocab, DTYPES[run.compute_dtype]
    if run.megatron:
        # Logits, their float32 copy that becomes the softmax, and the gradient.
        return vocab * (width * (1 + training) + 4) / run.tp
    # flash-attn's cross-entropy writes the gradient into the logits; a temperature other than 1 copies them.
    copies = 1 if run.temperature == 1 else 2
    if training and run.entropy:  # verl then keeps the logits: a gradient of the loss, one of the entropy
        copies += 2
    return vocab * width * copies


def full_layer(run: PlannedRun) -> float:
    """Bytes per token that one layer keeps for backward where nothing of it is recomputed."""
    return layer_activations(
        run.model,
        run.longest,
        width=DTYPES[run.compute_dtype],
        tp=run.tp,
        sequence_parallel=run.megatron and run.sequence_parallel,
        flash=run.flash_attention or run.recompute == "selective",
        eager_norms=not run.megatron,
        fused_gate=run.megatron,
    )


def training_activations(run: PlannedRun, *, in_flight: int | None = None) -> float:
    """Bytes kept for backward, per token of a micro-batch, on a GPU that holds ``in_flight`` micro-batches (1F1B).

    With full recomputation these are the layers' inputs alone; `recomputed_layer` comes on top.
    """
    width = DTYPES[run.compute_dtype]
    layers: float = ceil(run.model.layers / run.pp) * (in_flight or 1)
    if run.pp > 1 and run.virtual_pp > 1 and in_flight and in_flight > 1:
        layers *= 1 + (run.pp - 1) / (run.pp * run.virtual_pp)
    if run.recompute != "full":
        return layers * full_layer(run)
    split = run.tp if run.megatron and run.sequence_parallel else 1
    return layers * width * run.model.hidden / split


def recomputed_layer(run: PlannedRun) -> float:
    """Bytes per token of the layer that is being recomputed, with the gradient of its widest tensor."""
    if run.recompute != "full":
        return 0.0
    mlps = run.model.experts_per_token if run.model.experts else 1
    return full_layer(run) + 2 * DTYPES[run.compute_dtype] * mlps * run.model.intermediate / run.tp


def tokens_with_logits(run: PlannedRun, tokens: float) -> float:
    """Tokens of a micro-batch whose logits are held at a time."""
    return min(tokens, CHUNK) if run.fused_kernels else tokens
