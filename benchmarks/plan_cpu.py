"""The update phase as ``fgrpo plan`` predicts it on this CPU, against the one that verl's own worker takes.

    python -m benchmarks.plan_cpu [--repeats 5]

The machine is described by ``fgrpo_plugin.plan.cpu.measure_cpu``, before and after; the efficiencies are 1, since that
is what was reached. One thread and its CPU time, the shortest of the repeats in both, so that other processes on the
machine count little. The first model is the quick start's, the others are random. FSDP2, one rank, float32.
"""

import platform
import tempfile
import time
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from tests.support.worker import GROUP, attach_advantages, config, join_process_group, make_model, make_rows, update

CASES = (  # layers, width, rows, prompt, response
    (0, 0, 64, 16, 8),  # the quick start's own model and lengths
    (4, 256, 64, 64, 128),
    (4, 512, 32, 64, 128),
    (8, 1024, 16, 64, 192),
)
COLUMNS = (
    "model",
    "parameters",
    "rows x tokens",
    "measured, s",
    "predicted, s",
    "products, s",
    "measured / predicted",
)


def measured_update(composed: Any, rows: int, prompt: int, response: int, repeats: int) -> float:
    """Shortest CPU seconds of ``update_actor`` in verl's worker."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.utils.losses import ppo_loss

    from fgrpo_plugin.host.settings.reading import read_settings

    worker = ActorRolloutRefWorker(composed.actor_rollout_ref, role="actor")
    worker.init_model()
    actor = composed.actor_rollout_ref.actor
    worker.actor.set_loss_fn(partial(ppo_loss, config=omega_conf_to_dataclass(actor)))
    data = make_rows([prompt] * rows, [response] * rows)
    data["old_log_probs"] = data["rollout_log_probs"]
    data["ref_log_prob"] = data["rollout_log_probs"]
    attach_advantages(data, read_settings(actor.policy_loss.f_divergence))
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        update(worker, data)
        times.append(time.process_time() - start)
    return min(times[1:])


def case(folder: Path, layers: int, width: int, rows: int, prompt: int, response: int, micro: int) -> Any:
    """The composed configuration of one case."""
    if layers:
        make_model(str(folder), layers, width)
    else:
        from fgrpo_plugin.quickstart.model import build_model, build_tokenizer

        make_model(str(folder), 1, 64)  # the data files beside it
        tokenizer = build_tokenizer()
        build_model(tokenizer, 0).save_pretrained(folder)
    return config(
        str(folder),
        "algorithm.adv_estimator=f_grpo",
        f"data.train_batch_size={rows // GROUP}",
        f"data.max_prompt_length={prompt}",
        f"data.max_response_length={response}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={rows // GROUP}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={micro}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={micro}",
        "trainer.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    )


def main(
    repeats: int = 5,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print measured and predicted times."""
    from fgrpo_plugin.plan.configuration import planned_run_from_config
    from fgrpo_plugin.plan.cpu import measure_cpu
    from fgrpo_plugin.plan.planned_run import Assumptions
    from fgrpo_plugin.plan.roofline import Roofline

    torch.set_num_threads(1)
    join_process_group()
    reached = Assumptions(matmul=1.0, bandwidth=1.0, network=1.0, latency_us=0.0)
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    machines = []
    for layers, width, rows, prompt, response in CASES:
        with tempfile.TemporaryDirectory() as name:
            composed = case(Path(name), layers, width, rows, prompt, response, micro=min(16, rows))
            before = measure_cpu(time.process_time)
            seconds = measured_update(composed, rows, prompt, response, repeats)
            after = measure_cpu(time.process_time)
            machines += [before, after]
            cpu = replace(
                before,
                tflops=(before.tflops + after.tflops) / 2,
                bandwidth_gb=(before.bandwidth_gb + after.bandwidth_gb) / 2,
            )
            setup, _ = planned_run_from_config(composed, cpu)
            predicted = Roofline(setup, reached).update()
            products = Roofline(replace(setup, gpu=replace(cpu, bandwidth_gb=1e9)), reached).update()
            model = setup.model
            what = f"{model.layers} x {model.hidden}" + ("" if layers else " (quick start)")
            size = f"{rows} x {prompt}+{response}"
            row = (what, f"{model.parameters / 1e6:.2f}e6", size, f"{seconds:.3f}", f"{predicted:.3f}")
            row += (f"{products:.3f}", f"{seconds / predicted:.2f}")
            lines.append(" | ".join(row))
            Console().print(lines[-1], highlight=False)
    flops, bytes_ = [cpu.tflops * 1000 for cpu in machines], [cpu.bandwidth_gb for cpu in machines]
    said = (
        f"CPU seconds of one thread, the shortest of {repeats} repeats; {min(flops):.0f} to {max(flops):.0f} GFLOP/s "
        f"and {min(bytes_):.1f} to {max(bytes_):.1f} GB/s, measured between the cases; {platform.machine()}, "
        f"torch {torch.__version__}, {date.today()}."
    )
    Console().print(said, highlight=False)
    if output is not None:
        output.write_text("\n".join(f"| {line} |" for line in lines) + f"\n\n{said}\n")


if __name__ == "__main__":
    typer.run(main)
