"""What is planned: model, GPUs, and every setting of verl that changes memory or time."""

from dataclasses import dataclass, fields, replace
from math import ceil

from fgrpo_plugin.model_shape import ModelShape
from fgrpo_plugin.plan.gpus import Gpu

ENGINES = ("fsdp", "fsdp2", "megatron")
DTYPES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
MEGATRON_ONLY = ("tp", "pp", "cp", "ep", "etp", "ref_offload")
FSDP_ONLY = ("sp", "shard", "dtype", "ref_dtype")
NODE_GIB_A_GPU = 128.0
"""Memory of a node, GiB for each of its GPUs, where nothing else is said: 1024 GiB for 8."""
LEAST = {"shard": -1, "lora_rank": 0, "preference_rows": 0, "rollout_gpus": 0}
RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Assumptions:
    """Efficiencies and constants that no configuration holds: assumed, not measured; each is set by ``--assume``."""

    matmul: float = 0.6
    """Share of the peak that large matrix products reach."""
    bandwidth: float = 0.7
    """Share of the memory bandwidth that elementwise work and decoding reach."""
    network: float = 0.7
    """Share of the links' bandwidth that collectives and host copies reach."""
    decode_step_ms: float = 4.0
    """Fixed time of one decoding step: scheduler, launches, sampling."""
    latency_us: float = 20.0
    """Of one collective."""
    overhead_gib: float = 4.0
    """CUDA contexts of trainer and rollout engine, communication buffers."""
    fragmentation: float = 0.05
    """Share of the trainer's memory that the allocator cannot use."""
    host_memory_gb: float = 20.0
    """Host memory bandwidth for one GPU, 1e9 bytes/s: an optimiser that steps on the CPU."""
    node_memory_gib: float | None = None
    """Memory of a node; None: `NODE_GIB_A_GPU` for each of its GPUs."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if not value >= 0 or (field.name in ("matmul", "bandwidth", "network") and not 0 < value <= 1):
                bounds = "in (0, 1]" if field.name in ("matmul", "bandwidth", "network") else ">= 0"
                raise ValueError(f"--assume {field.name}={value} must be a number {bounds}.")


@dataclass(frozen=True)
class PlannedRun:
    """One run. Counts of prompts, rows and tokens are of the whole run unless they say otherwise.

    Raises:
        ValueError: values that contradict one another; the message names the setting and the remedy.
    """

    model: ModelShape
    gpu: Gpu
    nodes: int = 1
    gpus_per_node: int = 8
    engine: str = "fsdp2"
    # Parallelism of training. Megatron: tp, pp, cp, ep; FSDP: shard and sp.
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    """Tensor parallelism of experts; None: tp."""
    virtual_pp: int = 1
    uneven_stages: bool = False
    """The configuration says how many layers a pipeline stage has; planned as if all had as many."""
    sequence_parallel: bool = True
    sp: int = 1
    """Ulysses sequence parallelism."""
    shard: int = -1
    """GPUs that share one copy of the states (``fsdp_size``); -1: all."""
    reshard_after_forward: bool = True
    distributed_optimizer: bool = True
    # What is kept where.
    dtype: str = "fp32"
    """Of FSDP's stored weights, gradients and optimiser states."""
    compute_dtype: str = "bf16"
    param_offload: bool = False
    """Weights (and gradients) are on the GPU during training alone."""
    optimizer_offload: bool = False
    """Optimiser states are on the GPU during training alone."""
    step_offload: bool = False
    """The optimiser lives on the host (FSDP2: weights and gradients too), also during training."""
    ref_offload: bool = True
    """The reference is on the host outside its own pass; verl's FSDP does so always."""
    ref_dtype: str = "fp32"
    recompute: str = "full"
    flash_attention: bool = True
    lora_rank: int = 0
    lora_merged: bool = False
    """The rollout engine gets whole weights, with the adapters in them."""
    fused_kernels: bool = False
    """No logits of a whole micro-batch are held."""
    temperature: float = 1.0
    entropy: bool = False
    """The update computes the entropy too, which keeps the logits."""
    # Data.
    prompts: int = 256
    group: int = 4
    minibatch: int = 256
    """Prompts in an optimiser step."""
    epochs: int = 1
    prompt_length: int = 512
    response_length: int = 1024
    mean_prompt: int | None = None
    mean_response: int | None = None
    """Mean tokens of a response, for times; None: as long as the longest."""
    dynamic_batch: bool = True
    log_prob_dynamic_batch: bool = True
    tokens_per_gpu: int = 16384
    log_prob_tokens_per_gpu: int = 16384
    micro_rows: int = 1
    log_prob_micro_rows: int = 1
    """Rows of a micro-batch where batches are not dynamic."""
    # Algorithm.
    reference: bool = True
    old_log_prob: bool = False
    """The actor recomputes log pi_old: one more forward pass."""
    lam: float = 0.0
    """lambda of f-HAL; the largest where it is scheduled."""
    preference_rows: int = 0
    """In an optimiser step."""
    # Rollout engine.
    rollout_tp: int = 1
    rollout_gpus: int = 0
    """GPUs that generate while those of ``nodes`` train (``separate_async``); 0: the same ones do both in turn."""
    trainer_generates: bool = True
    """With ``rollout_gpus``: the training GPUs hold a rollout engine too, for the start and for validation."""
    utilization: float = 0.5
    """Share of the GPU's memory that the rollout engine takes."""
    max_rows: int = 256
    """Rows that one replica decodes at a time (``max_num_seqs``)."""
    max_batched_tokens: int = 8192
    rollout_dtype: str = "bf16"
    rollout_sleeps: bool = True
    """The rollout engine frees its memory during training (``free_cache_engine``)."""
    prefix_caching: bool = True
    bucket_mib: int = 2048

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is not one of {', '.join(ENGINES)}.")
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"recompute {self.recompute!r} is not one of {', '.join(RECOMPUTE)}.")
        for name in ("dtype", "compute_dtype", "ref_dtype", "rollout_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(DTYPES)}.")
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type in (int, int | None) and value is not None
            least = LEAST.get(field.name, 1)
            if whole and (not isinstance(value, int) or value < least):
                raise ValueError(f"{field.name} {value!r} must be a whole number >= {least}.")
        passes = (
            (self.dynamic_batch, self.tokens_per_gpu, "actor.ppo"),
            (self.log_prob_dynamic_batch, self.log_prob_tokens_per_gpu, "ref.log_prob"),
        )
        for dynamic, tokens, name in passes:
            if dynamic and tokens * self.sp * self.cp < self.longest:
                raise ValueError(
                    f"a row of {self.longest} tokens exceeds the {tokens * self.sp * self.cp} of a micro-batch (tokens "
                    f"for each GPU * sp * cp); raise actor_rollout_ref.{name}_max_token_len_per_gpu, or sp or cp."
                )
        for name, mean, most in (
            ("prompt", self.mean_prompt, self.prompt_length),
            ("response", self.mean_response, self.response_length),
        ):
            if (mean or 0) > most:
                raise ValueError(f"mean {name} {mean} is more than the longest, {most}; lower it, or raise that.")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lambda {self.lam} must lie in [0, 1].")
        if not 0 < self.utilization < 1:
            raise ValueError(f"gpu_memory_utilization {self.utilization} must lie between 0 and 1.")
        self._check_parallelism()
        if self.generates and self.minibatch * self.group % self.dp:
            raise ValueError(
                f"ppo_mini_batch_size x rollout.n makes {self.minibatch * self.group} rows, no multiple of the "
                f"{self.dp} data-parallel ranks that share a mini-batch; change one of them."
            )
        if self.joined_rows % (2 * self.dp):
            raise ValueError(
                f"preference rows {self.joined_rows} must be a multiple of {2 * self.dp}: as many of each side on each "
                f"of {self.dp} data-parallel ranks."
            )

    def _check_parallelism(self) -> None:
        if self.megatron:
            if self.sp > 1 or self.shard != -1:
                raise ValueError("sp and fsdp_size belong to FSDP; with engine megatron use tp, pp, cp and ep.")
            if self.model.heads % self.tp:
                raise ValueError(f"tp {self.tp} does not divide the {self.model.heads} attention heads.")
            if self.ep > 1 and (not self.model.experts or self.model.experts % self.ep):
                raise ValueError(f"ep {self.ep} needs a model whose number of experts it divides.")
        elif max(self.tp, self.pp, self.cp, self.ep) > 1:
            raise ValueError(f"tp, pp, cp and ep belong to Megatron; with engine {self.engine} use sp and fsdp_size.")
        for name, size in (("sp", self.sp), ("rollout tp", self.rollout_tp)):
            if self.model.heads % size:
                raise ValueError(f"{name} {size} does not divide the {self.model.heads} attention heads.")
        for name, size in (
            ("tp * pp * cp", self.tp * self.pp * self.cp),
            ("ep * etp * pp", self.expert_split * self.pp),
            ("sp", self.sp),
            ("fsdp_size", self.shards),
            ("rollout tp", self.rollout_tp),
        ):
            gpus = self.generating_gpus if name == "rollout tp" else self.gpus
            if gpus % size:
                raise ValueError(f"{name} = {size} does not divide the {gpus} GPUs; change either.")
        stages = self.pp * self.virtual_pp
        if self.model.layers % stages and not self.uneven_stages:
            raise ValueError(
                f"pp * virtual pp = {stages} does not divide the {self.model.layers} layers of {self.model.name}; "
                "choose a pp that does, or set uneven stages in override_transformer_config."
            )

    @property
    def megatron(self) -> bool:
        """Whether Megatron trains."""
        return self.engine == "megatron"

    @property
    def gpus(self) -> int:
        """GPUs that train."""
        return self.nodes * self.gpus_per_node

    @property
    def generating_gpus(self) -> int:
        """GPUs that generate: those that train, or others."""
        return self.rollout_gpus or self.gpus

    @property
    def all_gpus(self) -> int:
        """GPUs of the run."""
        return self.gpus + self.rollout_gpus

    @property
    def colocated(self) -> bool:
        """Whether the training GPUs hold a rollout engine."""
        return self.generates and (not self.rollout_gpus or self.trainer_generates)

    @property
    def expert_split(self) -> int:
        """GPUs of one pipeline stage that share one copy of the experts."""
        return self.ep * (self.etp or self.tp) if self.megatron and self.model.experts else 1

    @property
    def dp(self) -> int:
        """Data-parallel size: among how many the rows are split."""
        return self.gpus // (self.tp * self.pp * self.cp * self.sp)

    @property
    def shards(self) -> int:
        """GPUs that share one copy of FSDP's states."""
        return self.gpus if self.shard < 1 else min(self.shard, self.gpus)

    @property
    def generates(self) -> bool:
        """Whether there is anything to roll out: lambda = 1 trains on preference rows alone."""
        return self.lam < 1

    @property
    def sends_adapters(self) -> bool:
        """Whether the rollout engine is sent adapters alone, for base weights that it keeps."""
        return self.lora_rank > 0 and not self.lora_merged

    @property
    def joined_rows(self) -> int:
        """Preference rows in an optimiser step; none where lambda is 0."""
        return self.preference_rows if self.lam > 0 else 0

    @property
    def on_policy_rows(self) -> int:
        """Rolled-out rows in the fullest optimiser step, without those that only fill a mini-batch up."""
        return min(self.minibatch, self.prompts) * self.group if self.generates else 0

    @property
    def minibatches(self) -> int:
        """In one pass over a step's rows: verl fills the last one up with rows of a few tokens and no gradient."""
        return ceil(self.prompts / self.minibatch) if self.generates else max(1, self.prompts // self.minibatch)

    @property
    def optimizer_steps(self) -> int:
        """In one training step."""
        return self.minibatches * self.epochs

    @property
    def filling_rows(self) -> int:
        """Rows that verl adds to a step's to make whole mini-batches."""
        return (self.minibatches * self.minibatch - self.prompts) * self.group if self.generates else 0

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_length + self.response_length

    @property
    def mean_row(self) -> int:
        """Mean tokens of a row."""
        return (self.mean_prompt or self.prompt_length) + (self.mean_response or self.response_length)

    def micro_batch(self, *, training: bool = True) -> tuple[float, int]:
        """The largest micro-batch, in tokens on one GPU, and how many of them a data-parallel rank has.

        With dynamic batches verl packs up to ``tokens_per_gpu`` times sp (or cp) tokens; each GPU then holds its
        share of them. Log-probs are computed for a step's rows at once, or a mini-batch's where others generate.

        Args:
            training: an optimiser step; False: a pass of log-probs.
        """
        split = self.sp * self.cp
        rows, filled = self.on_policy_rows, self.minibatch * self.group if self.generates else 0
        if not training and not self.rollout_gpus:
            rows, filled = self.prompts * self.group, filled * self.minibatches
        joined = self.joined_rows * training
        rows, filled = (ceil((each + joined) / self.dp) or 1 for each in (rows, filled))
        if self.dynamic_batch if training else self.log_prob_dynamic_batch:
            limit = (self.tokens_per_gpu if training else self.log_prob_tokens_per_gpu) * split
            largest = min(limit, rows * self.longest)
            count = ceil(rows * self.mean_row / limit)
        else:
            micro = self.micro_rows if training else self.log_prob_micro_rows
            largest, count = min(micro, rows) * self.longest, ceil(filled / micro)
        return largest / split, count

    def at_mean_lengths(self) -> "PlannedRun":
        """The same run with every row as long as the mean: what most micro-batches take."""
        return replace(
            self,
            prompt_length=self.mean_prompt or self.prompt_length,
            response_length=self.mean_response or self.response_length,
        )
