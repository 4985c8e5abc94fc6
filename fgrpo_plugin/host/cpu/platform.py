"""The CPU as a verl platform: the device interface, implemented without an accelerator."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase


class _CpuDevice(types.ModuleType):
    """`torch.cpu` with the calls of `torch.cuda` that verl makes and `torch.cpu` lacks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def ipc_collect(self) -> None:
        """Nothing is shared through device handles."""

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        """Host memory has no per-process share."""

    def set_device(self, device: Any) -> None:
        """There is one device."""

    def get_device_name(self, device: Any = None) -> str:
        return "cpu"

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    # verl reports these as its memory metrics; resident memory is what they mean on a CPU.
    def memory_allocated(self, device: Any = None) -> int:
        return int(psutil.Process().memory_info().rss)

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Resident memory is read when asked for; no peak is kept."""


class PlatformCPU(PlatformBase):
    """Run verl's workers on CPU cores.

    Ray hands out the placeholders of its `GPU` resource (`ray_kwargs.ray_init.num_gpus`), one per rank, since
    verl asks Ray for the accelerator ids of its workers and only known accelerators have them.
    """

    _device = _CpuDevice("fgrpo_cpu_device", "See `_CpuDevice`.")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._device

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        # verl only passes this on to `Tensor.to` and friends, for which index 0 would mean an accelerator.
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU calls have returned when they return."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The settings are those of the CUDA allocator."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        # Ray sets this one for the `GPU` resource; nothing on a CPU reads it.
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # Weights then reach vLLM through shared memory.
        return False

    def cudart(self) -> None:
        return None


def register(module: types.ModuleType) -> None:
    """Add the CPU to `module`, verl's platform manager."""
    module.PlatformRegistry.register(platform="cpu")(PlatformCPU)
