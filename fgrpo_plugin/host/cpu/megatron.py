"""verl's Megatron engine on CPU cores, to rehearse a Megatron recipe and to test the losses under it.

Nothing here is active unless a worker is asked for Megatron (config group `cpu_megatron`). The engine, its schedules,
parallel layers and distributed optimiser, and mbridge's conversion of weights are the installed ones. What they take
from a GPU is answered: device calls, the device name "cuda", Transformer Engine's fused layers and the flash kernel. It
is for small models; nothing here is fast.
"""

import functools
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.megatron.transformer_impl import MegatronEngine, MegatronEngineWithLMHead


def register(module: ModuleType) -> None:
    """Register the engine for the device `cpu`; `module`, which defines verl's, is imported."""
    EngineRegistry.register(model_type="language_model", backend="megatron", device="cpu")(CpuMegatronEngineWithLMHead)


class CudaMeansCpu(TorchFunctionMode):
    """Inside it, tensors that are asked for on "cuda" are made on the CPU, and a tensor's type is one of torch.cuda.

    Megatron's schedules and optimisers name the device, and its optimisers sort parameters by the name of their type.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


@functools.cache
def answer_device_calls() -> None:
    """Let the device calls that Megatron makes in this process succeed without a device."""
    from megatron.core import jit
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import module
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    jit.disable_jit_fuser()  # a compiler is no gain for small models
    cuda: Any = torch.cuda
    cuda.current_device = lambda: "cpu"
    # One function each: torch._dynamo keeps a table of them by identity.
    for place, name in (
        (cuda, "set_device"),
        (cuda, "synchronize"),
        (cuda.nvtx, "range_push"),
        (cuda.nvtx, "range_pop"),
    ):
        setattr(place, name, lambda *args, **kwargs: None)
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._get_cuda_rng_state = cuda.get_rng_state
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # The second of each pair is a type of torch.cuda, which a CPU build cannot compare with.
    for name in ("_FLOAT_TYPES", "_HALF_TYPES", "_BF16_TYPES"):
        setattr(module, name, getattr(module, name)[:1])
    # Experts: the dispatcher counts tokens on a stream of its own, and wants as numpy what it fetches from a GPU.
    cuda.Stream, cuda.stream, cuda.current_stream = _Stream, torch.cpu.stream, torch.cpu.current_stream
    token_dispatcher.maybe_move_tensor_to_cpu = _fetched
    # The router asks for it by this name, which Megatron leaves undefined where Transformer Engine is missing.
    vars(moe_utils).setdefault("te_general_gemm", None)


class _Stream(torch.cpu.Stream):
    """A stream whose events can be waited for."""

    def record_event(self) -> Any:
        return torch.cpu.Event()


def _fetched(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _on_cpu(method: Any) -> Any:
    """The engine's method, inside `CudaMeansCpu`."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with CudaMeansCpu():
            return method(*args, **kwargs)

    return call


class CpuMegatronEngineWithLMHead(MegatronEngineWithLMHead):
    """Actor and reference model. Wants mbridge, since Megatron-Bridge needs Transformer Engine."""

    def __init__(self, model_config: Any, engine_config: Any, *args: Any, **kwargs: Any) -> None:
        if not engine_config.vanilla_mbridge:
            raise ValueError(
                "Megatron on a CPU converts weights by mbridge alone; set "
                "actor_rollout_ref.actor.megatron.vanilla_mbridge=true, or use +fgrpo=cpu_megatron."
            )
        answer_device_calls()
        with CudaMeansCpu():
            super().__init__(model_config, engine_config, *args, **kwargs)

    def _build_tf_config(self) -> None:
        super()._build_tf_config()
        _use_plain_layers(self.bridge)

    initialize = _on_cpu(MegatronEngine.initialize)
    forward_backward_batch = _on_cpu(MegatronEngine.forward_backward_batch)
    optimizer_zero_grad = _on_cpu(MegatronEngine.optimizer_zero_grad)
    optimizer_step = _on_cpu(MegatronEngine.optimizer_step)
    save_checkpoint = _on_cpu(MegatronEngine.save_checkpoint)

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # Without Transformer Engine, Megatron expects Adam to have made a step before it loads one, and loads the step
        # counter into the parameter groups alone.
        adams = [part for part in getattr(self.optimizer, "chained_optimizers", ()) if part.init_state_fn]
        for part in adams:
            part.init_state_fn(part.optimizer)
            _set_steps(part.optimizer, lambda group: 0.0)
        # The optimiser copies what it loads into float32 parameters; half precision has copies of them.
        with CudaMeansCpu(), torch.no_grad():
            super().load_checkpoint(*args, **kwargs)
        for part in adams:
            _set_steps(part.optimizer, lambda group: float(group.get("step", 0.0)))


def _set_steps(optimizer: torch.optim.Optimizer, step: Callable[[dict[str, Any]], float]) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight]["step"] = torch.tensor(step(group))


def _use_plain_layers(bridge: Any) -> None:
    """Let this mbridge bridge build Megatron's own layers in place of Transformer Engine's, and name their weights.

    Transformer Engine fuses each norm into the linear layer behind it, and mbridge's names follow it.
    """

    def layer_spec(vp_stage: int | None = None) -> Any:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
        from megatron.core.transformer.identity_op import IdentityOp

        bridge.has_vp_stage = True
        block = get_gpt_decoder_block_spec(
            bridge.config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=vp_stage
        )
        for layer in block.layer_specs:
            parts = layer.submodules
            attention = parts.self_attention.submodules
            parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
            attention.core_attention = Attention
            if attention.q_layernorm is not IdentityOp:
                attention.q_layernorm = attention.k_layernorm = RMSNorm
        block.layer_norm = RMSNorm
        return block

    bridge._get_transformer_layer_spec = layer_spec
    bridge.config.moe_grouped_gemm = False  # experts one after another: the grouped kernel needs a GPU
    fused = "self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"
    bridge._OTHER_MAPPING = bridge._OTHER_MAPPING | {"input_layernorm.weight": bridge._ATTENTION_MAPPING[fused[0]]}
    if bridge.config.num_moe_experts is None:
        bridge._MLP_MAPPING = bridge._MLP_MAPPING | {"pre_mlp_layernorm.weight": bridge._MLP_MAPPING[fused[1]]}
    else:
        _name_experts(bridge)


def _name_experts(bridge: Any) -> None:
    """mbridge knows a layer's experts as one module with a weight for each; here each is a module of its own."""
    names = bridge._weight_name_mapping_mcore_local_to_global

    def global_names(model: Any, consider_ep: bool = True) -> dict[str, str]:
        first = bridge.config.num_moe_experts // bridge.mpu.ep_size * bridge.mpu.ep_rank if consider_ep else 0

        def as_one_module(found: re.Match) -> str:
            return f"{found[2]}{int(found[1]) + first}"

        return {
            local: re.sub(r"local_experts\.(\d+)\.(linear_fc\d\.weight)", as_one_module, name)
            for local, name in names(model, consider_ep).items()
        }

    bridge._weight_name_mapping_mcore_local_to_global = global_names


class RMSNorm(torch.nn.RMSNorm):
    """Root mean square norm over the last dimension, also where tensor-parallel ranks hold parts of the sequence."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        # Megatron then sums this weight's gradient over the ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class Attention(torch.nn.Module):
    """Causal attention of padded or packed rows, whole or shared among context-parallel ranks."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.group = pg_collection.cp

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_seq_params: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of this rank's queries.

        Args:
            query: (tokens, batch, heads, dim), or (tokens, heads, dim) of packed rows.
            key: as query, with heads that divide the query's.
            value: as key.
            attention_mask: not read. Rows are padded at their end, which no earlier token sees.
            packed_seq_params: the rows' bounds where they are packed.

        Returns:
            (tokens, batch, heads * dim); batch is 1 for packed rows.
        """
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        packed = packed_seq_params is not None
        if packed:
            query, key, value = (states.unsqueeze(1) for states in (query, key, value))
        ranks, rank = self.group.size(), self.group.rank()
        bounds = packed_seq_params.cu_seqlens_q_padded if packed else torch.tensor([0, query.shape[0] * ranks])
        if ranks > 1:
            key, value = (gather_from_sequence_parallel_region(states, group=self.group) for states in (key, value))
        places = [_places(bounds.diff().tolist(), ranks, other) for other in range(ranks)]
        row, position = places[rank]
        key_row, key_position = torch.cat(places, dim=1)
        mask = (row.unsqueeze(1) == key_row) & (position.unsqueeze(1) >= key_position)
        query, key, value = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale, enable_gqa=True)
        return output.permute(2, 0, 1, 3).flatten(2)


def _places(lengths: list[int], ranks: int, rank: int) -> torch.Tensor:
    """(2, tokens): row and position in it of each token that a context-parallel rank holds.

    Args:
        lengths: tokens of each row, padding included; 2 * ranks divides them if there is more than one rank.
        ranks: context-parallel size; a rank holds the chunks `rank` and `2 * ranks - 1 - rank` of each row.
        rank: which one.
    """
    found = []
    for row, length in enumerate(lengths):
        position = torch.arange(length)
        if ranks > 1:
            chunks = position.chunk(2 * ranks)
            position = torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]])
        found.append(torch.stack([torch.full_like(position, row), position]))
    return torch.cat(found, dim=1)
