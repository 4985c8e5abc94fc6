"""Time of a step by a roofline: work is bound by arithmetic, by memory bandwidth or by links, whichever takes longer.

Matrix products take max(FLOPs / (peak * matmul), bytes of their weights / (bandwidth)); elementwise work, which runs
between them, takes its bytes / bandwidth and is added. A decoding step reads all weights and the rows' keys and values
(Pope et al., arXiv 2211.05102). Every efficiency is an assumption (`Assumptions`). docs/plan.md has the formulas.
"""

from dataclasses import dataclass
from math import ceil

from fgrpo_plugin.plan.flops import forward_flops, update_flops
from fgrpo_plugin.plan.memory import (
    kv_bytes_per_token,
    kv_cache,
    layer_activations,
    logit_bytes,
    rollout_weights,
    states,
    trainable,
)
from fgrpo_plugin.plan.setup import DTYPES, Assumptions, Setup

FORWARD, BACKWARD = 2, 3
"""How often an activation passes memory: written and read; read, and its gradient written and read."""
ADAM_PASSES = 10
"""Reads and writes of a parameter-sized tensor in clipping and AdamW: p, g, m, v read, p, m, v written; g clipped."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step, by phase, and what follows."""

    phases: dict[str, float]
    tokens: float
    """Rolled-out rows' tokens, prompts included, plus those of preference rows."""
    new_tokens: float
    """Generated tokens."""
    gpus: int
    update_flops: float
    """Of the whole run, in one step, without what is recomputed."""
    peak_flops: float
    """Of the GPUs that train, FLOP/s."""
    rows_at_once: float
    """Rows that one replica decodes at a time."""
    overlapped: bool = False
    """Generation runs beside the other phases, on GPUs of its own."""

    @property
    def total(self) -> float:
        """Seconds."""
        everything, generation = sum(self.phases.values()), self.phases.get("generation", 0.0)
        return max(generation, everything - generation) if self.overlapped else everything

    @property
    def utilization(self) -> float:
        """Model FLOPs utilisation of the update."""
        return self.update_flops / (self.phases["update"] * self.peak_flops)


def step_time(setup: Setup, assumed: Assumptions) -> StepTime:
    """Seconds of each phase of one step."""
    step = Roofline(setup, assumed)
    found = {}
    if setup.generates:
        found["generation"] = step.generation()
    if setup.old_log_prob:
        found["old log-probs"] = step.log_probs(reference=False)
    if setup.reference:
        found["reference"] = step.log_probs(reference=True)
    found["update"] = step.update()
    if setup.generates:
        found["resharding"] = step.resharding()
    rows = setup.prompts * setup.group if setup.generates else 0
    joined = setup.joined_rows * setup.optimizer_steps
    tokens = (rows + joined) * setup.mean_row
    return StepTime(
        phases=found,
        tokens=tokens,
        new_tokens=rows * (setup.mean_response or setup.response_length),
        gpus=setup.all_gpus,
        update_flops=(rows * setup.epochs + joined)
        * setup.mean_row
        * update_flops(setup.model, setup.mean_row, lora_rank=setup.lora_rank),
        peak_flops=setup.gpus * setup.gpu.flops,
        rows_at_once=step.rows_at_once() if setup.generates else 0.0,
        overlapped=setup.rollout_gpus > 0,
    )


class Roofline:
    """Seconds of parts of a step on one GPU (all are taken to be equally loaded)."""

    def __init__(self, setup: Setup, assumed: Assumptions) -> None:
        gpu = setup.gpu
        self.setup, self.assumed = setup, assumed
        self.flops = gpu.flops * assumed.matmul
        self.bandwidth = gpu.bandwidth_gb * 1e9 * assumed.bandwidth
        self.link = gpu.link_gb * 1e9 * assumed.network
        self.network = gpu.network_gb * 1e9 * assumed.network
        self.host = gpu.host_gb * 1e9 * assumed.network
        self.width = DTYPES[setup.compute_dtype]

    def collective(self, size: float, ranks: int, *, whole_nodes: bool = False) -> float:
        """All-gather or reduce-scatter of ``size`` bytes over ``ranks`` GPUs, next to one another or spread.

        A node takes what it lacks through all its network shares at once, and hands it on inside.

        Args:
            size: bytes of the whole.
            ranks: GPUs.
            whole_nodes: the ranks lie on different nodes (one each) as far as there are nodes.
        """
        if ranks <= 1 or size <= 0:
            return 0.0
        seconds = size * (ranks - 1) / ranks / self.link
        nodes = min(self.setup.nodes, ranks if whole_nodes else ceil(ranks / self.setup.gpus_per_node))
        if nodes > 1:
            per_node = max(1, ranks // nodes)
            seconds = max(seconds, size * (nodes - 1) / nodes / (self.network * per_node))
        return seconds + self.assumed.latency_us * 1e-6

    def share(self) -> float:
        """Part of a token's work that one GPU does."""
        setup = self.setup
        return 1 / (setup.tp * setup.pp)

    # Generation

    def rows_at_once(self) -> float:
        """Rows that a replica decodes together: what there is, the limit, and the room in the cache."""
        setup = self.setup
        replicas = setup.generating_gpus / setup.rollout_tp
        mean_context = (setup.mean_prompt or setup.prompt_length) + (setup.mean_response or setup.response_length) / 2
        room = kv_cache(setup) / (kv_bytes_per_token(setup) * mean_context)
        return max(1.0, min(setup.prompts * setup.group / replicas, setup.max_rows, room))

    def decode_step(self, rows: float, context: float) -> float:
        """One token for each of ``rows`` rows of ``context`` tokens on one replica."""
        setup, model = self.setup, self.setup.model
        width, size = DTYPES[setup.rollout_dtype], setup.rollout_tp
        arithmetic = rows * forward_flops(model, context, causal=False) / size / self.flops
        weights = rollout_weights(setup)
        if model.experts:  # experts that no row has chosen are not read
            unread = (1 - model.experts_per_token / model.experts) ** rows
            weights -= unread * width * model.routed / size
        reading = (weights + rows * context * kv_bytes_per_token(setup)) / self.bandwidth
        sums = 2 * model.layers * 2 * self.collective(rows * model.hidden * width, setup.rollout_tp)
        return max(arithmetic, reading) + sums + self.assumed.decode_step_ms * 1e-3

    def generation(self) -> float:
        """Prefill of the prompts and decoding of every row."""
        setup = self.setup
        prompt, response = setup.mean_prompt or setup.prompt_length, setup.mean_response or setup.response_length
        size = setup.rollout_tp
        rows = setup.prompts * setup.group * size / setup.generating_gpus
        prefilled = rows / (setup.group if setup.prefix_caching else 1) * prompt
        prefill = prefilled * forward_flops(setup.model, prompt) / size / self.flops
        # The last row's response ends no earlier than the longest does.
        steps = max(rows / self.rows_at_once() * response, float(setup.response_length))
        return prefill + steps * self.decode_step(rows * response / steps, prompt + response / 2)

    # Log-probs and update

    def log_probs(self, *, reference: bool) -> float:
        """A forward pass over the rolled-out rows. (Reference log-probs of preference rows come from a cache.)"""
        setup = self.setup
        if not setup.generates:
            return 0.0
        _, count = setup.micro_batch(training=False)
        minibatches = max(1, setup.prompts // setup.minibatch)
        tokens = setup.prompts * setup.group * setup.mean_row / (setup.dp * setup.sp * setup.cp)
        seconds = self._compute(tokens, count * minibatches, forward_only=True)
        weights = DTYPES[setup.ref_dtype if reference else setup.dtype] * setup.model.parameters / setup.shards
        streamed = (reference and not setup.lora_rank) or setup.step_offload
        if not setup.megatron and streamed:  # each micro-batch fetches the shards from the host
            seconds = max(seconds, count * minibatches * weights / self.host)
        elif not streamed and setup.param_offload and not setup.megatron:
            seconds += 2 * weights / self.host
        if setup.megatron and reference and setup.ref_offload and not setup.lora_rank:
            seconds += states(setup)["weights"] / self.host
        return seconds

    def update(self) -> float:
        """Forward, backward and optimiser, every optimiser step of a training step."""
        setup = self.setup
        _, count = setup.micro_batch()
        rows = setup.on_policy_rows + setup.joined_rows
        tokens = rows * setup.mean_row / (setup.dp * setup.sp * setup.cp)
        one = self._compute(tokens, count, forward_only=False) + self._optimizer() + self._reduce(tokens)
        return setup.optimizer_steps * one + self._reload()

    def _compute(self, tokens: float, count: int, *, forward_only: bool) -> float:
        """Passes over ``tokens`` tokens of this GPU in ``count`` micro-batches."""
        setup, model = self.setup, self.setup.model
        recompute = "none" if forward_only else setup.recompute
        if forward_only:
            work, passes, logits = forward_flops(model, setup.mean_row), 1, FORWARD
        else:
            work = update_flops(model, setup.mean_row, recompute=recompute, lora_rank=setup.lora_rank)
            passes = 3 + (recompute == "full")
            logits = FORWARD + BACKWARD
        stored = self.width * (setup.model.parameters / (setup.tp * setup.pp))
        if setup.expert_split > 1:
            stored = (
                self.width
                * ((model.parameters - model.routed) / setup.tp + model.routed / setup.expert_split)
                / setup.pp
            )
        products = max(tokens * work * self.share() / self.flops, count * passes * stored / self.bandwidth)
        layer = layer_activations(
            model,
            setup.mean_row,
            width=self.width,
            tp=setup.tp,
            sequence_parallel=setup.megatron and setup.sequence_parallel,
            flash=setup.flash_attention,
            eager_norms=not setup.megatron,
            fused_gate=setup.megatron,
        )
        through = FORWARD if forward_only else FORWARD + BACKWARD + FORWARD * (recompute == "full")
        moved = through * layer * model.layers / setup.pp + logits * logit_bytes(setup, training=False)
        compute = products + tokens * moved / self.bandwidth
        compute *= 1 + (setup.pp - 1) / (max(count, 1) * setup.virtual_pp)  # the pipeline's bubble
        if setup.megatron:
            return compute + self._model_parallel(tokens, forward_only, recompute == "full")
        gathers = 1 if forward_only else (2 if setup.reshard_after_forward else 1)
        links = gathers * self.collective(self.width * model.parameters, setup.shards)
        if not forward_only:
            links += self.collective(4 * trainable(setup), setup.shards)
            if setup.step_offload:
                links += gathers * states(setup)["weights"] / self.host
        # Ulysses exchanges queries, keys, values and the output, tokens for heads.
        exchanged = tokens * self.width * (2 * model.query + 2 * model.key_value) * model.layers
        ulysses = (1 if forward_only else 2 + (recompute == "full")) * self.collective(exchanged, setup.sp)
        return max(compute, count * links) + ulysses

    def _model_parallel(self, tokens: float, forward_only: bool, recomputed: bool) -> float:
        """Megatron's tensor-parallel sums (two a layer and pass), context-parallel keys and values, and experts."""
        setup, model = self.setup, self.setup.model
        passes = 1 if forward_only else 2 + recomputed
        layers = model.layers / setup.pp
        seconds = 2 * passes * layers * 2 * self.collective(tokens * model.hidden * self.width, setup.tp)
        if setup.cp > 1:
            values = 2 * tokens * setup.cp * model.key_value / setup.tp * self.width
            seconds += passes * layers * self.collective(values, setup.cp * setup.tp) / setup.tp
        if setup.expert_split > 1 and setup.ep > 1:
            sent = tokens * model.experts_per_token * model.hidden * self.width / setup.tp
            seconds += 2 * passes * layers * self.collective(sent, setup.ep)
        return seconds

    def _optimizer(self) -> float:
        """Clipping and AdamW over this GPU's shard."""
        setup = self.setup
        mine = states(setup)["optimiser"] / 3 if setup.megatron else states(setup)["gradients"]
        if not setup.step_offload:
            return ADAM_PASSES * mine / self.bandwidth
        return ADAM_PASSES * mine / (self.assumed.host_memory_gb * 1e9) + 2 * mine / self.host

    def _reduce(self, tokens: float) -> float:
        """Megatron's gradients over its data-parallel GPUs, once an optimiser step, and the weights back."""
        setup = self.setup
        if not setup.megatron:
            replicas = setup.gpus // setup.shards
            return 2 * self.collective(states(setup)["gradients"], replicas, whole_nodes=True) if replicas > 1 else 0.0
        kept = states(setup)
        ranks = setup.dp * setup.cp
        sent = kept["gradients"] + (kept["weights"] if not setup.lora_rank else 0.0)
        return self.collective(sent, ranks, whole_nodes=setup.gpus > setup.gpus_per_node)

    def _reload(self) -> float:
        """Host copies of what is on the GPU during training alone, both ways."""
        setup, kept = self.setup, states(self.setup)
        moved = (kept["weights"] if setup.param_offload and not setup.step_offload else 0.0) + (
            kept["optimiser"] if setup.optimizer_offload and not setup.step_offload else 0.0
        )
        return 2 * moved / self.host

    def resharding(self) -> float:
        """Weights to the rollout engine: gathered over the trainer's GPUs, copied into the engine's."""
        setup = self.setup
        if setup.lora_rank:
            moved = DTYPES[setup.compute_dtype] * setup.model.lora(setup.lora_rank)
        else:
            moved = (2 if setup.megatron else DTYPES[setup.dtype]) * setup.model.parameters
        ranks = setup.tp * setup.pp * setup.ep if setup.megatron else setup.shards
        seconds = self.collective(moved, min(ranks, setup.gpus)) + 2 * moved / self.bandwidth
        if setup.param_offload or setup.step_offload:
            seconds += states(setup)["weights"] / self.host
        return seconds
