"""Time of one f-GRPO step against GRPO's, on the same rows, in the host's own workers.

    python -m benchmarks.step_time [--rows 64 --prompt 64 --response 128 --layers 4 --hidden 256 --repeats 9]

Counts what the two algorithms do differently: log-prob passes and the actor update, through verl's
``ActorRolloutRefWorker`` (FSDP2, the device that is there). Generation, reward and weight sync are the same for both
and are left out. The variants run in turns in one process, in an order shuffled each time (a fixed order alone moved
the ratio by several percent); the table shows ratios of medians.
"""

import os
import random
import statistics
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
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


class Step:
    """One optimiser step of one algorithm on fixed rows."""

    def __init__(self, worker: Any, reference: Any, composed: Any, rows: TensorDict) -> None:
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.utils.losses import ppo_loss

        from fgrpo_plugin.host.settings.reading import read_settings

        actor = composed.actor_rollout_ref.actor
        self.worker, self.reference, self.rows = worker, reference, rows
        self.loss = partial(ppo_loss, config=omega_conf_to_dataclass(actor))
        self.ours = composed.algorithm.adv_estimator == "f_grpo"
        self.settings = read_settings(actor.policy_loss.f_divergence) if self.ours else None
        self.bypass = bool(composed.algorithm.rollout_correction.bypass_mode)
        self.needs_reference = self.ours or actor.use_kl_loss

    def __call__(self) -> float:
        data = self.rows.copy()
        self.worker.actor.set_loss_fn(self.loss)
        start = time.perf_counter()
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
        return time.perf_counter() - start


def main(
    rows: int = 64,
    prompt: int = 64,
    response: int = 128,
    layers: int = 4,
    hidden: int = 256,
    micro: int = 16,
    repeats: int = 9,
    warmup: int = 2,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print medians and ratios."""
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
        times: dict[str, list[float]] = {name: [] for name in steps}
        order, shuffle = list(steps), random.Random(0)
        for repeat in range(warmup + repeats):
            shuffle.shuffle(order)  # what ran just before is not always the same variant
            for name in order:
                seconds = steps[name]()
                if repeat >= warmup:
                    times[name].append(seconds)
    _report(times, f"{rows} rows of {prompt}+{response} tokens, {layers} layers x {hidden}, {repeats} repeats", output)


def _report(times: dict[str, list[float]], title: str, output: Path | None) -> None:
    median = {name: statistics.median(values) for name, values in times.items()}
    targets = {"grpo": 1.02, "grpo + KL": 0.85}
    cpu = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu
    table = Table(title=f"log-prob passes + update, {title}; {device}")
    lines = ["| variant | median, s | f_grpo / variant | target |\n| --- | --- | --- | --- |"]
    for column in ("variant", "median, s", "f_grpo / variant", "target"):
        table.add_column(column)
    for name, value in median.items():
        ratio = median["f_grpo"] / value
        target = "reported" if name != "f_grpo" else ""
        if name in targets:
            target = f"at most {targets[name]:.2f}: {'met' if ratio <= targets[name] else 'missed'}"
        row = (name, f"{value:.3f}", f"{ratio:.2f}", target)
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    Console().print(table)
    if output is not None:
        output.write_text(f"{title} in shuffled order; {device}, {date.today()}:\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
