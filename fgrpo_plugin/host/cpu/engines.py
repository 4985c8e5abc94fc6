"""verl's FSDP engines, registered for the CPU."""

import dataclasses
from types import ModuleType
from typing import Any

from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead, FSDPEngineWithValueHead


class _WithoutOffload(FSDPEngine):
    """The host offloads a forward-only FSDP2 model into pinned memory, which needs an accelerator.

    On a CPU the parameters are where offloading would put them.
    """

    engine_config: Any

    def _build_fsdp_module(self, module: Any) -> Any:
        asked = self.engine_config
        self.engine_config = dataclasses.replace(asked, forward_only=False, offload_policy=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = asked


class CpuFSDPEngineWithLMHead(_WithoutOffload, FSDPEngineWithLMHead):
    """Actor and reference model."""


class CpuFSDPEngineWithValueHead(_WithoutOffload, FSDPEngineWithValueHead):
    """Critic."""


def register(module: ModuleType) -> None:
    """Register both engines for the device `cpu`; `module`, which defines the host's, is imported."""
    for model_type, engine in (
        ("language_model", CpuFSDPEngineWithLMHead),
        ("value_model", CpuFSDPEngineWithValueHead),
    ):
        EngineRegistry.register(model_type=model_type, backend=["fsdp", "fsdp2"], device="cpu")(engine)
