"""Forward and backward of f-GRPO's policy loss against verl's `vanilla` and `gspo`, on the same tensors.

    python benchmarks/loss.py [--repeats 25] [--device cuda] [--profile] [--output table.md]

Each as verl calls it in a worker, metrics included. Needs torch alone; without verl its two losses are left out,
with a note. Runs on the CPU, and on a CUDA device too where there is one. Time: ratio of medians, with the quartiles of
the ratio within a turn; the losses in turns and in an order shuffled each time. Peak memory: bytes allocated in the
call beyond its inputs. A row that misses its aim is followed by a profile that says where its time goes; --profile
gives one of every loss.
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes two lines for each measurement

import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.worker.policy_loss import f_grpo_policy_loss, f_hal_policy_loss

SHAPES = ((64, 4096), (512, 1024))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = {
    "f_grpo": {},
    "f_grpo, gamma=1": {"gamma": 1.0},
    "f_grpo, jensen_shannon": {"divergence": "jensen_shannon"},
    "f_grpo, level=token": {"level": "token"},
    "f_grpo, level=token, jensen_shannon": {"level": "token", "divergence": "jensen_shannon"},
}

AIMS = {"f_grpo, level=token": 0.90, "f_grpo": 0.50}
"""Time over `vanilla`'s, by how a loss's name begins."""
SHOWN = 6
"""Operations in a profile."""

Loss = Callable[[torch.Tensor], torch.Tensor]


def tensors(rows: int, tokens: int, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Log-probs a little apart, responses of every length, groups of four with binary rewards."""
    draw = torch.Generator().manual_seed(0)
    log_prob = -torch.rand(rows, tokens, generator=draw)
    noise = [0.01 * torch.randn(rows, tokens, generator=draw) for _ in range(2)]
    lengths = torch.randint(tokens // 4, tokens + 1, (rows, 1), generator=draw)
    advantage = torch.randn(rows, generator=draw)
    made = {
        "log_prob": log_prob.to(dtype),
        "old_log_prob": (log_prob + noise[0]).to(dtype),
        "ref_log_prob": (log_prob + noise[1]).to(dtype),
        "response_mask": (torch.arange(tokens) < lengths).long(),
        "advantage": advantage,
        "advantages": advantage.unsqueeze(-1).expand(rows, tokens).contiguous(),
    }
    return {name: values.to(device) for name, values in made.items()}


def ours(data: dict[str, torch.Tensor], settings: dict[str, Any]) -> Loss:
    """The registered policy loss, with the numbers that the driver attaches to the rows."""
    rows = len(data["advantage"])
    ones = torch.ones(rows, device=data["advantage"].device)
    divergence = FDivergenceConfig(**settings)
    count = rows if divergence.level != "token" else int(data["response_mask"].sum())
    config = SimpleNamespace(policy_loss=SimpleNamespace(f_divergence=divergence), global_batch_info={"dp_size": 1})

    def loss(log_prob: torch.Tensor) -> torch.Tensor:
        return f_grpo_policy_loss(
            data["old_log_prob"],
            log_prob,
            data["advantages"],
            data["response_mask"],
            config=config,
            ref_log_prob=data["ref_log_prob"],
            f_divergence_advantage=data["advantage"],
            f_divergence_weight=ones,
            f_divergence_count=count * ones,
            f_divergence_fresh=ones,
        )[0]

    return loss


def ours_f_hal(data: dict[str, torch.Tensor], settings: dict[str, Any], lam: float = 0.5) -> Loss:
    """The same of f-HAL; every fourth row is a preference row, D+ and D- in turn."""
    rows, divergence = len(data["advantage"]), FDivergenceConfig(**settings, lam=lam)
    device = data["advantage"].device
    place = torch.arange(rows, device=device)
    side = torch.where(place % 4 == 3, 1.0 - 2.0 * (place % 8 == 3), 0.0)
    tokens = data["response_mask"].sum(dim=-1)
    on_policy = (side == 0).float()
    units = tokens if divergence.level == "token" else torch.ones_like(tokens)
    count = sum(torch.where(side == kind, units[side == kind].sum(), 0) for kind in (-1, 0, 1))
    config = SimpleNamespace(policy_loss=SimpleNamespace(f_divergence=divergence), global_batch_info={"dp_size": 1})
    fields = {
        "f_divergence_advantage": data["advantage"] * on_policy,
        "f_divergence_weight": on_policy,
        "f_divergence_count": count.float(),
        "f_divergence_fresh": on_policy,
        "f_divergence_side": side,
        "f_divergence_tokens": tokens * (1 - on_policy),
        "f_divergence_lam": torch.full_like(side, lam),
    }
    mask = data["response_mask"] * on_policy.long().unsqueeze(-1)

    def loss(log_prob: torch.Tensor) -> torch.Tensor:
        return f_hal_policy_loss(
            data["old_log_prob"],
            log_prob,
            data["advantages"],
            mask,
            config=config,
            ref_log_prob=data["ref_log_prob"],
            **fields,
        )[0]

    return loss


def hosts(data: dict[str, torch.Tensor], name: str, aggregation: str) -> Loss | None:
    """One of verl's losses, or None without verl."""
    try:
        from verl.trainer.ppo.core_algos import get_policy_loss_fn
        from verl.workers.config import FSDPActorConfig
    except ImportError:
        return None
    config = FSDPActorConfig(
        strategy="fsdp2", ppo_micro_batch_size_per_gpu=4, rollout_n=4, use_torch_compile=False, clip_ratio_low=0.2
    )
    function = get_policy_loss_fn(name)

    def loss(log_prob: torch.Tensor) -> torch.Tensor:
        return function(
            old_log_prob=data["old_log_prob"],
            log_prob=log_prob,
            advantages=data["advantages"],
            response_mask=data["response_mask"],
            loss_agg_mode=aggregation,
            config=config,
        )[0]

    return loss


def step(loss: Loss, log_prob: torch.Tensor) -> float:
    """Seconds of one forward and backward."""
    leaf = log_prob.detach().requires_grad_()
    _wait(leaf)
    start = time.perf_counter()
    loss(leaf).backward()
    _wait(leaf)
    return time.perf_counter() - start


def peak_bytes(loss: Loss, log_prob: torch.Tensor) -> int:
    """Most bytes that one forward and backward holds at once beyond its inputs, the gradient included."""
    leaf = log_prob.detach().requires_grad_()
    if leaf.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(leaf).backward()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(leaf).backward()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Print, for each device, shape and dtype, medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one of the two; default both, where there is a GPU")
    parser.add_argument("--profile", action="store_true", help="say of every loss where its time goes")
    parser.add_argument("--output", type=Path, help="also write the tables there")
    options = parser.parse_args()
    pages = []
    devices = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
    for device in devices if options.device is None else (options.device,):
        cores = f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"
        named = torch.cuda.get_device_name(0) if device == "cuda" else cores
        for rows, tokens in SHAPES:
            for label, dtype in DTYPES.items():
                title = f"{rows} x {tokens}, {label} log-probs; {named}, torch {torch.__version__}, {date.today()}"
                pages.append(compare(title, rows, tokens, dtype, device, options))
                print(pages[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(pages))


def compare(title: str, rows: int, tokens: int, dtype: torch.dtype, device: str, options: argparse.Namespace) -> str:
    """One table, as Markdown."""
    data = tensors(rows, tokens, dtype, device)
    known = {"vanilla": hosts(data, "vanilla", "token-mean"), "gspo": hosts(data, "gspo", "seq-mean-token-mean")}
    losses = {name: loss for name, loss in known.items() if loss is not None}
    note = "" if losses else "\n\nverl is not installed: its losses are left out, and there are no ratios."
    losses |= {name: ours(data, settings) for name, settings in OURS.items()}
    times: dict[str, list[float]] = {name: [] for name in losses}
    order, shuffle = list(losses), random.Random(0)
    for repeat in range(options.warmup + options.repeats):
        shuffle.shuffle(order)
        for name in order:
            seconds = step(losses[name], data["log_prob"])
            if repeat >= options.warmup:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    peak = {name: peak_bytes(loss, data["log_prob"]) for name, loss in losses.items()}

    columns = ("loss", "median, ms", "/ vanilla", "quartiles", "aim", "/ gspo", "peak, MiB", "/ vanilla", "/ gspo")
    lines = [f"{title}:{note}\n", "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    profiles = []
    for name, loss in losses.items():
        time_ratio, peak_ratio = (
            {base: values[name] / values[base] for base in known if base in values} for values in (median, peak)
        )
        aim = next((value for start, value in AIMS.items() if name.startswith(start)), None)
        missed = aim is not None and time_ratio.get("vanilla", 0.0) > aim
        row = (
            name,
            f"{1e3 * median[name]:.2f}",
            _ratio(time_ratio, "vanilla"),
            _quartiles(times[name], times.get("vanilla")),
            "" if aim is None else f"{aim:.2f}: {'missed' if missed else 'met'}",
            _ratio(time_ratio, "gspo"),
            f"{peak[name] / 2**20:.1f}",
            *(_ratio(peak_ratio, base) for base in known),
        )
        lines.append("| " + " | ".join(row) + " |")
        if missed or options.profile:
            profiles.append(f"{name}: {profiled(loss, data['log_prob'])}")
    if profiles:
        lines += [
            "",
            "Share of the time by operation, the largest first (how often it is called):\n",
            *(f"- {line}" for line in profiles),
        ]
    return "\n".join([*lines, ""])


def profiled(loss: Loss, log_prob: torch.Tensor) -> str:
    """Where the time of a forward and backward goes: the host's, which on a GPU is what starting the kernels takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(5):
            step(loss, log_prob)
    found = sorted(profile.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in found)
    parts = [
        f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.0%} ({event.count // 5})"
        for event in found[:SHOWN]
    ]
    return ", ".join(parts)


def _ratio(ratios: dict[str, float], base: str) -> str:
    return f"{ratios[base]:.2f}" if base in ratios else "-"


def _quartiles(times: list[float], base: list[float] | None) -> str:
    """Of the ratio within a turn."""
    if base is None or len(times) < 2:
        return "-"
    low, _, high = statistics.quantiles([a / b for a, b in zip(times, base, strict=True)], n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
