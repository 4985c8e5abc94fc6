"""Time of a step by a roofline: work is bound by arithmetic, by memory bandwidth or by links, whichever takes longer.

Matrix products take max(FLOPs / (peak * matmul), bytes of their weights / (bandwidth)); elementwise work, which runs
between them, takes its bytes / bandwidth and is added. A decoding step reads all weights and the rows' keys and values
(Pope et al., arXiv 2211.05102). Every efficiency is an assumption (`Assumptions`). docs/plan.md has the formulas.
"""

from dataclasses import dataclass
from math import ceil

from fgrpo_plugin.plan.activations import layer_activations, logit_bytes
from fgrpo_plugin.plan.flops import forward_flops, update_flops
from fgrpo_plugin.plan.memory import kv_bytes_per_token, kv_cache, rollout_weights, states, trainable
from fgrpo_plugin.plan.planned_run import DTYPES, Assumptions, PlannedRun

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


def step_time(run: PlannedRun, assumed: Assumptions) -> StepTime:
    """Seconds of each phase of one step."""
    step = Roofline(run, assumed)
    found = {}
    if run.generates:
        found["generation"] = step.generation()
    if run.old_log_prob:
        found["old log-probs"] = step.log_probs(reference=False)
    if run.reference:
        found["reference"] = step.log_probs(reference=True)
    found["update"] = step.update()
    if run.generates:
        found["resharding"] = step.resharding()
    rows = run.prompts * run.group if run.generates else 0
    joined = run.joined_rows * run.optimizer_steps
    tokens = (rows + joined) * run.mean_row
    return StepTime(
        phases=found,
        tokens=tokens,
        new_tokens=rows * (run.mean_response or run.response_length),
        gpus=run.all_gpus,
        update_flops=(rows * run.epochs + joined)
        * run.mean_row
        * update_flops(run.model, run.mean_row, lora_rank=run.lora_rank),
        peak_flops=run.gpus * run.gpu.flops,
        rows_at_once=step.rows_at_once() if run.generates else 0.0,
        overlapped=run.rollout_gpus > 0,
    )


class Roofline:
    """Seconds of parts of a step on one GPU (all are taken to be equally loaded)."""

    def __init__(self, run: PlannedRun, assumed: Assumptions) -> None:
        gpu = run.gpu
        self.run, self.assumed = run, assumed
        self.flops = gpu.flops * assumed.matmul
        self.bandwidth = gpu.bandwidth_gb * 1e9 * assumed.bandwidth
        self.link = gpu.link_gb * 1e9 * assumed.network
        self.network = gpu.network_gb * 1e9 * assumed.network
        self.host = gpu.host_gb * 1e9 * assumed.network
        self.width = DTYPES[run.compute_dtype]

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
        nodes = min(self.run.nodes, ranks if whole_nodes else ceil(ranks / self.run.gpus_per_node))
        if nodes > 1:
            per_node = max(1, ranks // nodes)
            seconds = max(seconds, size * (nodes - 1) / nodes / (self.network * per_node))
        return seconds + self.assumed.latency_us * 1e-6

    def share(self) -> float:
        """Part of a token's work that one GPU does."""
        run = self.run
        return 1 / (run.tp * run.pp)

    # Generation

    def rows_at_once(self) -> float:
        """Rows that a replica decodes together: what there is, the limit, and the room in the cache."""
        run = self.run
        replicas = run.generating_gpus / run.rollout_tp
        mean_context = (run.mean_prompt or run.prompt_length) + (run.mean_response or run.response_length) / 2
        room = kv_cache(run) / (kv_bytes_per_token(run) * mean_context)
        return max(1.0, min(run.prompts * run.group / replicas, run.max_rows, room))

    def decode_step(self, rows: float, context: float) -> float:
        """One token for each of ``rows`` rows of ``context`` tokens on one replica."""
        run, model = self.run, self.run.model
        width, size = DTYPES[run.rollout_dtype], run.rollout_tp
        arithmetic = rows * forward_flops(model, context, causal=False) / size / self.flops
        weights = rollout_weights(run)
        if model.experts:  # experts that no row has chosen are not read
            unread = (1 - model.experts_per_token / model.experts) ** rows
            weights -= unread * width * model.routed / size
        reading = (weights + rows * context * kv_bytes_per_token(run)) / self.bandwidth
        sums = 2 * model.layers * 2 * self.collective(rows * model.hidden * width, run.rollout_tp)
        return max(arithmetic, reading) + sums + self.assumed.decode_step_ms * 1e-3

    def generation(self) -> float:
        """Prefill of the prompts and decoding of every row."""
        run = self.run
        prompt, response = run.mean_prompt or run.prompt_length, run.mean_response or run.response_length
        size = run.rollout_tp
        rows = run.prompts * run.group * size / run.generating_gpus
        prefilled = rows / (run.group if run.prefix_caching else 1) * prompt
        prefill = prefilled * forward_flops(run.model, prompt) / size / self.flops
        # The last row's response ends no earlier than the longest does.
        steps = max(rows / self.rows_at_once() * response, float(run.response_length))
        return prefill + steps * self.decode_step(rows * response / steps, prompt + response / 2)

    # Log-probs and update

    def log_probs(self, *, reference: bool) -> float:
        """A forward pass over the rolled-out rows. (Reference log-probs of preference rows come from a cache.)"""
        run = self.run
        if not run.generates:
            return 0.0
        _, count = run.micro_batch(training=False)
        count *= run.minibatches if run.rollout_gpus else 1
        tokens = run.prompts * run.group * run.mean_row / (run.dp * run.sp * run.cp)
        seconds = self._compute(tokens, count, forward_only=True)
        weights = DTYPES[run.ref_dtype if reference else run.dtype] * run.model.parameters / run.shards
        streamed = (reference and not run.lora_rank) or run.step_offload
        if not run.megatron and streamed:  # each micro-batch fetches the shards from the host
            seconds = max(seconds, count * weights / self.host)
        elif not streamed and run.param_offload and not run.megatron:
            seconds += 2 * weights / self.host
        if run.megatron and reference and run.ref_offload and not run.lora_rank:
            seconds += states(run)["weights"] / self.host
        return seconds

    def update(self) -> float:
        """Forward, backward and optimiser, every optimiser step of a training step."""
        run = self.run
        _, count = run.micro_batch()
        rolled_out = run.prompts * run.group / run.minibatches if run.generates else 0.0
        tokens = (rolled_out + run.joined_rows) * run.mean_row / (run.dp * run.sp * run.cp)
        one = self._compute(tokens, count, forward_only=False) + self._optimizer() + self._reduce(tokens)
        return run.optimizer_steps * one + self._reload()

    def _compute(self, tokens: float, count: int, *, forward_only: bool) -> float:
        """Passes over ``tokens`` tokens of this GPU in ``count`` micro-batches."""
        run, model = self.run, self.run.model
        recompute = "none" if forward_only else run.recompute
        if forward_only:
            work, passes, logits = forward_flops(model, run.mean_row), 1, FORWARD
        else:
            work = update_flops(model, run.mean_row, recompute=recompute, lora_rank=run.lora_rank)
            passes = 3 + (recompute == "full")
            logits = FORWARD + BACKWARD
        stored = self.width * (run.model.parameters / (run.tp * run.pp))
        if run.expert_split > 1:
            stored = (
                self.width * ((model.parameters - model.routed) / run.tp + model.routed / run.expert_split) / run.pp
            )
        products = max(tokens * work * self.share() / self.flops, count * passes * stored / self.bandwidth)
        layer = layer_activations(
            model,
            run.mean_row,
            width=self.width,
            tp=run.tp,
            sequence_parallel=run.megatron and run.sequence_parallel,
            flash=run.flash_attention,
            eager_norms=not run.megatron,
            fused_gate=run.megatron,
        )
        through = FORWARD if forward_only else FORWARD + BACKWARD + FORWARD * (recompute == "full")
        moved = through * layer * model.layers / run.pp + logits * logit_bytes(run, training=False)
        compute = products + tokens * moved / self.bandwidth
        compute *= 1 + (run.pp - 1) / (max(count, 1) * run.virtual_pp)  # the pipeline's bubble
        if run.megatron:
            return compute + self._model_parallel(tokens, forward_only, recompute == "full")
        gathers = 1 if forward_only else (2 if run.reshard_after_forward else 1)
        links = gathers * self.collective(self.width * model.parameters, run.shards)
        if not forward_only:
            links += self.collective(4 * trainable(run), run.shards)
            if run.step_offload:
                links += gathers * states(run)["weights"] / self.host
        # Ulysses exchanges queries, keys, values and the output, tokens for heads.
        exchanged = tokens * self.width * (2 * model.query + 2 * model.key_value) * model.layers
        ulysses = (1 if forward_only else 2 + (recompute == "full")) * self.collective(exchanged, run.sp)
        return max(compute, count * links) + ulysses

    def _model_parallel(self, tokens: float, forward_only: bool, recomputed: bool) -> float:
        """Megatron's tensor-parallel sums (two a layer and pass), context-parallel keys and values, and experts."""
        run, model = self.run, self.run.model
        passes = 1 if forward_only else 2 + recomputed
        layers = model.layers / run.pp
        seconds = 2 * passes * layers * 2 * self.collective(tokens * model.hidden * self.width, run.tp)
        if run.cp > 1:
            values = 2 * tokens * run.cp * model.key_value / run.tp * self.width
            seconds += passes * layers * self.collective(values, run.cp * run.tp) / run.tp
        if run.expert_split > 1 and run.ep > 1:
            sent = tokens * model.experts_per_token * model.hidden * self.width / run.tp
            seconds += 2 * passes * layers * self.collective(sent, run.ep)
        return seconds

    def _optimizer(self) -> float:
        """Clipping and AdamW over this GPU's shard."""
        run = self.run
        mine = states(run)["optimiser"] / 3 if run.megatron else states(run)["gradients"]
        if not run.step_offload:
            return ADAM_PASSES * mine / self.bandwidth
        return ADAM_PASSES * mine / (self.assumed.host_memory_gb * 1e9) + 2 * mine / self.host

    def _reduce(self, tokens: float) -> float:
        """Megatron's gradients over its data-parallel GPUs, once an optimiser step, and the weights back."""
        run = self.run
        if not run.megatron:
            replicas = run.gpus // run.shards
            return 2 * self.collective(states(run)["gradients"], replicas, whole_nodes=True) if replicas > 1 else 0.0
        kept = states(run)
        ranks = run.dp * run.cp
        sent = kept["gradients"] + (kept["weights"] if not run.lora_rank else 0.0)
        return self.collective(sent, ranks, whole_nodes=run.gpus > run.gpus_per_node)

    def _reload(self) -> float:
        """Host copies of what is on the GPU during training alone, both ways."""
        run, kept = self.run, states(self.run)
        moved = (kept["weights"] if run.param_offload and not run.step_offload else 0.0) + (
            kept["optimiser"] if run.optimizer_offload and not run.step_offload else 0.0
        )
        return 2 * moved / self.host

    def resharding(self) -> float:
        """Weights to the rollout engine: gathered over the trainer's GPUs, copied into the engine's."""
        run = self.run
        if run.sends_adapters:
            moved = DTYPES[run.compute_dtype] * run.model.lora(run.lora_rank)
        else:
            moved = (2 if run.megatron else DTYPES[run.dtype]) * run.model.parameters
        ranks = run.tp * run.pp * run.ep if run.megatron else run.shards
        seconds = self.collective(moved, min(ranks, run.gpus)) + 2 * moved / self.bandwidth
        if run.param_offload or run.step_offload:
            seconds += states(run)["weights"] / self.host
        return seconds
