"""What one micro-batch asks of a device: operations and synchronisations of each loss, counted.

    python -m benchmarks.operations [--output table.md]

Forward, metrics and backward to the log-probs, as verl calls the loss in a worker. An operation is a call that
starts a kernel (views, and memory without content, are none). A synchronisation makes the host wait for the device: a
value read (``item``, ``tolist``, ``bool``, ``cpu``), a shape that depends on values (``nonzero``, a bool index), or a
tensor made of Python numbers on the device. Counted on the CPU, where the same calls are made. The last column is the
time of so small a micro-batch that it is that of operations and of Python: median, the losses in turns.
"""

import itertools
import platform
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import typer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.loss import OURS, hosts, ours, ours_f_hal, step, tensors

ROWS, TOKENS = 16, 16
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "bincount",
    "_unique2",
    "repeat_interleave",
}
"""aten operations that wait for the device."""
READING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__, torch.tensor}
"""Calls that do so without an aten operation of their own on the CPU."""
NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view", "lift_fresh")


class Counted(TorchDispatchMode):
    """Counts what runs inside of it; ``synchronisations`` and ``operations`` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()
        self._reads = _Reads(self.synchronisations)

    def __enter__(self) -> "Counted":
        self._reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_value = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in WAITING or by_value:
            self.synchronisations[name] += 1
        if not (func.is_view or name.startswith(NO_KERNEL) or name == "_local_scalar_dense"):
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in READING:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def count(loss: Callable[[torch.Tensor], torch.Tensor], log_prob: torch.Tensor) -> Counted:
    """What one forward and backward does.

    Args:
        loss: log-probs (n, T), nats, to a scalar.
        log_prob: (n, T).
    """
    leaf = log_prob.detach().requires_grad_()
    loss(leaf)  # what is made once a process is not counted
    with Counted() as counted:
        loss(leaf).backward()
    return counted


def main(output: Path | None = None, repeats: int = 200) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    data = tensors(ROWS, TOKENS, torch.float32, "cpu")
    losses = {"vanilla": hosts(data, "vanilla", "token-mean"), "gspo": hosts(data, "gspo", "seq-mean-token-mean")}
    losses |= {name: ours(data, settings) for name, settings in OURS.items()}
    losses |= {name.replace("f_grpo", "f_hal"): ours_f_hal(data, settings) for name, settings in OURS.items()}
    found = {name: count(loss, data["log_prob"]) for name, loss in losses.items() if loss is not None}
    times: dict[str, list[float]] = {name: [] for name in found}
    for name in itertools.chain.from_iterable(itertools.repeat(list(found), repeats)):
        times[name].append(step(losses[name], data["log_prob"]))
    lines = ["| loss | operations | synchronisations | median, ms |", "| --- | --- | --- | --- |"]
    for name, counted in found.items():
        numbers = (counted.operations.total(), counted.synchronisations.total())
        lines.append(f"| {name} | {numbers[0]} | {numbers[1]} | {1e3 * statistics.median(times[name]):.2f} |")
    title = (
        f"{ROWS} rows of {TOKENS} tokens; {platform.machine()}, one thread, torch {torch.__version__}, {date.today()}:"
    )
    page = "\n".join([f"{title}\n", *lines, ""])
    print(page)
    if output is not None:
        output.write_text(page)


if __name__ == "__main__":
    typer.run(main)
