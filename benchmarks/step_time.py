"""Time of one f-GRPO step against GRPO's, on the same rows, in verl's own workers.

    python -m benchmarks.step_time [--rows 64 --prompt 64 --response 128 --layers 4 --hidden 256 --repeats 25 --runs 2]

Counts what the two algorithms do differently: log-prob passes and the actor update, through verl's
``ActorRolloutRefWorker`` (FSDP2, the device that is there). Generation, reward and weight sync are the same for both
and are left out. The variants run in turns in one process, in an order shuffled each time (a fixed order alone moved
the ratio by several percent). The tables show medians with their quartiles; ratios of medians, of the time that passes
and of CPU seconds, and in brackets the quartiles of the ratio within a turn. Runs are independent of one another: what
holds in all of them is no accident of one. Time in the loss is that of verl's ppo_loss, without its backward pass.
The passes that each variant makes are counted in verl's engines.
"""

import os
import random
import statistics
import tempfile
import time
from collections import Counter
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from tensordict import TensorDict

from tests.support.worker import (
    GROUP,
    attach_advantages,
    config,
    join_process_group,
    make_model,
    make_rows,
    response_log_probs,
    update,
)


class Seconds(NamedTuple):
    """What a step took."""

    wall: float
    cpu: float
    loss: float
    """CPU seconds in verl's ppo_loss, without its backward pass."""


class Passes:
    """Counts the rows that go through an engine's model, while it is told to which variant they belong."""

    def __init__(self, **engines: Any) -> None:
        from verl.utils import torch_functional

        self.rows: Counter[str] = Counter()
        # Whether rows are packed decides by which of two names an engine calls it.
        torch_functional.entropy_from_logits = partial(self._entropy, torch_functional.entropy_from_logits)
        for name, engine in engines.items():
            engine.forward_step = partial(self._forward, name, engine.forward_step)
            engine.compute_entropy_from_logits = partial(self._entropy, engine.compute_entropy_from_logits)

    def _forward(self, name: str, step: Any, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        self._now = f"{name}, {'forward' if forward_only else 'forward and backward'}", len(micro_batch)
        self.rows[self._now[0]] += self._now[1]
        return step(micro_batch, loss_function=loss_function, forward_only=forward_only)

    def _entropy(self, entropy: Any, *args: Any, **kwargs: Any) -> Any:
        self.rows[f"{self._now[0]}, with entropy"] += self._now[1]
        return entropy(*args, **kwargs)


class Step:
    """One optimiser step of one algorithm on fixed rows."""

    def __init__(self, worker: Any, reference: Any, composed: Any, rows: TensorDict) -> None:
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.utils.losses import ppo_loss

        from fgrpo_plugin.host.settings.reading import read_settings

        actor = composed.actor_rollout_ref.actor
        self.worker, self.reference, self.rows = worker, reference, rows
        self._loss, self._in_loss = partial(ppo_loss, config=omega_conf_to_dataclass(actor)), 0.0
        self.ours = composed.algorithm.adv_estimator == "f_grpo"
        self.settings = read_settings(actor.policy_loss.f_divergence) if self.ours else None
        self.bypass = bool(composed.algorithm.rollout_correction.bypass_mode)
        self.needs_reference = self.ours or actor.use_kl_loss

    def _timed_loss(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        found = self._loss(*args, **kwargs)
        self._in_loss += time.process_time() - start
        return found

    def __call__(self) -> Seconds:
        data = self.rows.copy()
        self.worker.actor.set_loss_fn(self._timed_loss)
        start = Seconds(time.perf_counter(), time.process_time(), self._in_loss)
        if self.bypass:
            data["old_log_probs"] = data["rollout_log_probs"]
        else:
            data["old_log_probs"] = response_log_probs(self.worker.compute_log_prob, data, entropy=True)
        if self.needs_reference:
            data["ref_log_prob"] = response_log_probs(self.reference.compute_ref_log_prob, data, entropy=False)
        attach_advantages(data, self.settings)
        update(self.worker, data)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends = Seconds(time.perf_counter(), time.process_time(), self._in_loss)
        return Seconds(*(end - begin for end, begin in zip(ends, start, strict=True)))


def main(
    rows: int = 64,
    prompt: int = 64,
    response: int = 128,
    layers: int = 4,
    hidden: int = 256,
    micro: int = 16,
    repeats: int = 25,
    warmup: int = 2,
    runs: int = 2,
    output: Annotated[Path | None, typer.Option(help="Also write the tables there, as Markdown.")] = None,
) -> None:
    """Print the passes of each variant, and for each run medians and ratios."""
    from verl.workers.engine_workers import ActorRolloutRefWorker

    join_process_group()
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, layers, hidden)
        sizes = [
            f"data.train_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
            f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={micro}",
            f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={micro}",
        ]
        grpo = ["algorithm.adv_estimator=grpo"]
        kl = [*grpo, "actor_rollout_ref.actor.use_kl_loss=true"]
        recomputed = ["algorithm.rollout_correction.bypass_mode=false"]
        bypass = ["algorithm.rollout_correction.bypass_mode=true"]
        variants = {
            "f_grpo": config(folder, *sizes, "algorithm.adv_estimator=f_grpo"),
            "grpo": config(folder, *sizes, *grpo, *recomputed),
            "grpo + KL": config(folder, *sizes, *kl, *recomputed),
            "grpo + KL + bypass_mode": config(folder, *sizes, *kl, *bypass),
        }
        worker = ActorRolloutRefWorker(variants["f_grpo"].actor_rollout_ref, role="actor")
        reference = ActorRolloutRefWorker(config(folder, *sizes, *kl).actor_rollout_ref, role="ref")
        worker.init_model()
        reference.init_model()
        fixed = make_rows([prompt] * rows, [response] * rows)
        steps = {name: Step(worker, reference, composed, fixed) for name, composed in variants.items()}
        passes = Passes(actor=worker.actor.engine, reference=reference.ref.engine)
        counted: dict[str, Counter[str]] = {}
        for name, step in steps.items():
            passes.rows.clear()
            step()
            counted[name] = Counter({kind: number // rows for kind, number in passes.rows.items()})
        title = f"{rows} rows of {prompt}+{response} tokens, {layers} layers x {hidden}, {repeats} repeats"
        found = [_measured(steps, repeats, warmup, seed=run) for run in range(runs)]
        pages = [_report(times, f"Run {run + 1}: {title}") for run, times in enumerate(found)]
        pages.append(_passes(counted))
    for page in pages:
        print(page, flush=True)
    if output is not None:
        output.write_text("\n".join(pages))


def _measured(steps: dict[str, Step], repeats: int, warmup: int, seed: int) -> dict[str, list[Seconds]]:
    times: dict[str, list[Seconds]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(seed)
    for repeat in range(warmup + repeats):
        shuffle.shuffle(order)  # what ran just before is not always the same variant
        for name in order:
            seconds = steps[name]()
            if repeat >= warmup:
                times[name].append(seconds)
    return times


def _passes(counted: dict[str, Counter[str]]) -> str:
    """Over the rows, by each variant."""
    kinds = sorted({kind for counts in counted.values() for kind in counts})
    lines = ["Passes over the rows, counted in verl's engines:\n"]
    lines += ["| variant | " + " | ".join(kinds) + " |", "| --- " * (1 + len(kinds)) + "|"]
    lines += [
        f"| {name} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |" for name, counts in counted.items()
    ]
    return "\n".join([*lines, ""])


def _report(times: dict[str, list[Seconds]], title: str) -> str:
    """One run's table, as Markdown."""
    targets = {"grpo": 1.02, "grpo + KL": 0.85, "grpo + KL + bypass_mode": 1.02}
    cpu = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu
    columns = (
        "variant",
        "median, s",
        "quartiles",
        "CPU, s",
        "of it in the loss, ms",
        "f_grpo / variant",
        "of CPU seconds",
        "target",
    )
    lines = [f"{title}, in shuffled order; {device}, {date.today()}:\n"]
    lines += ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for name, found in times.items():
        row = [name, *_median_and_quartiles([one.wall for one in found], 3)]
        row.append(f"{statistics.median(one.cpu for one in found):.3f}")
        row.append(f"{1e3 * statistics.median(one.loss for one in found):.1f}")
        target = ""
        for kind in (0, 1):
            ours, theirs = ([one[kind] for one in values] for values in (times["f_grpo"], found))
            ratio = statistics.median(ours) / statistics.median(theirs)
            _, spread = _median_and_quartiles([a / b for a, b in zip(ours, theirs, strict=True)], 2)
            row.append(f"{ratio:.2f} ({spread})" if name != "f_grpo" else "1.00")
            if kind == 0 and name in targets:
                target = f"at most {targets[name]:.2f}: {'met' if ratio <= targets[name] else 'missed'}"
        lines.append("| " + " | ".join([*row, target]) + " |")
    return "\n".join([*lines, ""])


def _median_and_quartiles(values: list[float], digits: int) -> tuple[str, str]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


if __name__ == "__main__":
    typer.run(main)
