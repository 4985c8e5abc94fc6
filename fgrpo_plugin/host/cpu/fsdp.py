"""verl's FSDP engines, registered for the CPU."""

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch.distributed.fsdp import _init_utils
from torch.distributed.tensor import DTensor
from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name
from verl.utils.model import convert_weight_keys
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead, FSDPEngineWithValueHead

from fgrpo_plugin.host.cpu.attention import NAME as attention_name


class _CpuFSDPEngine(FSDPEngine):
    """verl's FSDP engine without offloading, which needs an accelerator; on a CPU parameters are there already."""

    engine_config: Any

    def __init__(self, model_config: Any, engine_config: Any, *args: Any, **kwargs: Any) -> None:
        size = engine_config.ulysses_sequence_parallel_size
        attention = model_config.override_config.get("attn_implementation")
        if size > 1 and attention != attention_name:
            # Each rank would attend to its own part of the sequence, without a word.
            raise ValueError(
                f"ulysses_sequence_parallel_size={size} on a CPU needs attention that verl's all-to-alls go around;"
                f" set +actor_rollout_ref.model.override_config.attn_implementation={attention_name}, not {attention}."
            )
        super().__init__(model_config, engine_config, *args, **kwargs)

    def _build_fsdp_module(self, module: Any) -> Any:
        asked = self.engine_config
        self.engine_config = dataclasses.replace(asked, forward_only=False, offload_policy=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = asked

    def _merged_lora_per_tensor_param(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield base weights with the adapter merged into them, in the dtype that they are trained in.

        verl rounds them to bfloat16, which is what its rollouts on accelerators compute in; a float32 rollout then
        differs from the actor by 1e-3 in probability where full fine-tuning differs by 1e-6.
        """
        with merged_lora_context(self.module, backup_adapters=True):
            # Copies, made while the adapter is merged: the context takes it out again, and senders may lag behind.
            weights = normalize_peft_param_name(self.module.state_dict())
            weights = convert_weight_keys(weights, getattr(self.module, "_fsdp_wrapped_module", self.module))
            for name, weight in weights.items():
                yield name, weight.full_tensor() if isinstance(weight, DTensor) else weight.detach().clone()


class CpuFSDPEngineWithLMHead(_CpuFSDPEngine, FSDPEngineWithLMHead):
    """Actor and reference model."""


class CpuFSDPEngineWithValueHead(_CpuFSDPEngine, FSDPEngineWithValueHead):
    """Critic."""


def register(module: ModuleType) -> None:
    """Register both engines for the device `cpu`; `module`, which defines verl's, is imported."""
    for model_type, engine in (
        ("language_model", CpuFSDPEngineWithLMHead),
        ("value_model", CpuFSDPEngineWithValueHead),
    ):
        EngineRegistry.register(model_type=model_type, backend=["fsdp", "fsdp2"], device="cpu")(engine)
    # FSDP 1: torch refuses to broadcast weights from a CPU, which gloo can; verl would load them onto "cpu:cpu".
    _init_utils._check_module_states_for_sync_module_states = lambda module_states: None
    vars(module)["load_fsdp_model_to_gpu"] = lambda model: None
