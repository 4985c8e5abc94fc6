"""Megatron in float32: chosen by `_target_` in the config group `cpu_megatron`."""

from dataclasses import dataclass

from verl.workers.config import McoreEngineConfig


@dataclass
class CpuMcoreEngineConfig(McoreEngineConfig):
    """verl's settings of the Megatron engine, where `dtype` may also be float32: on a CPU nothing speaks for less."""

    def __post_init__(self) -> None:
        asked = self.dtype
        if asked == "float32":
            object.__setattr__(self, "dtype", "bfloat16")  # verl knows half precision alone
        super().__post_init__()
        object.__setattr__(self, "dtype", asked)
