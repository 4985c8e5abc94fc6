"""This machine as a GPU description: what its matrix products and its memory reach, measured in a few seconds."""

import time
from collections.abc import Callable

from fgrpo_plugin.plan.gpus import GIB, Gpu

SIZE = 1024  # of square matrices: large enough that overhead does not count
ELEMENTS = 2**25  # 128 MiB in float32: larger than any cache
SECONDS = 1.0


def measure_cpu(clock: Callable[[], float] = time.perf_counter) -> Gpu:
    """Peak float32 FLOP/s of torch's matrix product, bytes/s of a copy, and the machine's memory.

    Args:
        clock: seconds; ``time.process_time`` with one torch thread leaves other processes' work out.
    """
    import psutil
    import torch

    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    product = torch.empty(SIZE, SIZE)
    flops = 2 * SIZE**3 / _fastest(lambda: torch.mm(left, right, out=product), clock)
    source, target = torch.ones(ELEMENTS), torch.ones(ELEMENTS)
    bandwidth = 2 * 4 * ELEMENTS / _fastest(lambda: target.copy_(source), clock)
    return Gpu(
        name="cpu",
        memory_gib=round(psutil.virtual_memory().total / GIB, 1),
        tflops=round(flops / 1e12, 4),
        bandwidth_gb=round(bandwidth / 1e9, 2),
        link_gb=round(bandwidth / 1e9, 2),
        network_gb=0.125,  # a 1 Gbit/s network: not measured
        host_gb=round(bandwidth / 1e9, 2),
    )


def _fastest(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Shortest of the repeats that fit into `SECONDS`, and of at least five."""
    call()
    times: list[float] = []
    end = clock() + SECONDS
    while len(times) < 5 or clock() < end:
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)
