"""verl's actor worker in processes of its own: makes the updates that a file of jobs asks for. Used by engine_jobs.py.

    python -m tests.host.worker_process JOBS RESULTS

A job: name, ranks, model folder, overrides of the configuration, file with a dumped batch (each data-parallel rank
takes its contiguous share, as the host deals them), temperature. Where asked, `per_micro_batch` (a control that weights
rows wrongly) and `log_probs` (passes before the update: the actor's, and the reference's, with the adapter off). Every
job starts from the folder's weights and a new optimiser. The ranks are forked from this process, which has imported
the host once for all of them.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import verl.trainer.ppo.v1  # noqa: F401  (what the ranks would each import)
from torch.multiprocessing import start_processes
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from benchmarks.worker import config, free_port, join_process_group, update


def whole(engine: Any, of: Callable[[Any], torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """`of` each parameter that has it, put together from all shards; every rank must call it.

    Megatron's are named and shaped as Hugging Face's: mbridge exports whatever the parameters hold.
    """
    if not isinstance(engine.module, list):
        values = {name: of(value) for name, value in engine.module.named_parameters()}
        return {name: value.full_tensor().detach().clone() for name, value in values.items() if value is not None}
    held = [(value, value.data) for chunk in engine.module for value in chunk.parameters()]
    for value, data in held:
        value.data = of(value).detach()
    found = {name: value.detach().clone() for name, value in engine.bridge.export_weights(engine.module)}
    for value, data in held:
        value.data = data
    return found


def parameters(engine: Any) -> dict[str, torch.Tensor]:
    return whole(engine, lambda value: value)


def gradients(engine: Any) -> dict[str, torch.Tensor]:
    return whole(engine, lambda value: value.main_grad if hasattr(value, "main_grad") else value.grad)


def averaging_micro_batches(loss: Callable) -> Callable:
    """The usual mistake: each half of `loss` divided by its rows in the micro-batch, and micro-batches averaged."""

    def wrong(data: Any, **kwargs: Any) -> Any:
        data = data.copy()
        side = data["f_divergence_side"]
        counts = torch.stack([(side == value).sum() for value in side])
        data["f_divergence_count"] = counts.float() * WRONG["micro_batches"]
        return loss(data=data, **kwargs)

    return wrong


WRONG = {"micro_batches": 1}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradients before clipping, parameters after the update, and this rank's rows in each micro-batch."""
    torch.manual_seed(0)
    worker = ActorRolloutRefWorker(
        config(job["model"], *job["overrides"], group=job["group"]).actor_rollout_ref, role="actor"
    )
    worker.init_model()
    engine = worker.actor.engine
    step, found = engine.optimizer_step, {"micro_batches": [], "shapes": []}

    def optimizer_step() -> float:
        found["gradients"] = gradients(engine)
        return step()

    stock = worker.actor.loss_fn
    if job.get("per_micro_batch"):
        stock = averaging_micro_batches(stock)
        WRONG["micro_batches"] = job["per_micro_batch"]

    def loss_fn(data: Any, **kwargs: Any) -> Any:
        found["micro_batches"].append(data["f_divergence_side"].tolist())
        return stock(data=data, **kwargs)

    def forward_pre_hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found["shapes"].append(tuple(kwargs["input_ids"].shape))

    for module in engine.module if isinstance(engine.module, list) else [engine.module]:
        module.register_forward_pre_hook(forward_pre_hook, with_kwargs=True)
    engine.optimizer_step = optimizer_step
    worker.set_loss_fn(loss_fn)
    size, place = engine.get_data_parallel_size(), engine.get_data_parallel_rank()
    share = tu.chunk_tensordict(torch.load(job["batch"], weights_only=False), size)[place]
    found["log_probs"] = {name: log_probs(worker, share, name == "reference") for name in job.get("log_probs", ())}
    output = update(worker, share, ranks=size, temperature=job["temperature"])
    if engine.is_mp_src_rank_with_outputs():
        found["loss"] = output["metrics"]["loss"]
    return found | {"parameters": parameters(engine)}


def log_probs(worker: Any, share: Any, without_adapter: bool) -> list[torch.Tensor]:
    """Log-probs of each row's tokens, as the host asks for the reference's (adapter off) or the actor's own."""
    batch = share.copy()
    tu.assign_non_tensor(batch, calculate_entropy=False, compute_loss=False, temperature=1.0)
    tu.assign_non_tensor(batch, no_lora_adapter=without_adapter)
    return [row.clone() for row in worker.compute_log_prob(batch)["log_probs"].unbind()]


def run_all(rank: int, ranks: int, port: int, jobs: list[dict[str, Any]], results: str) -> None:
    """Every job of one group size, in one rank; what it found goes to a file."""
    join_process_group(rank, ranks, port)
    found = {}
    for job in jobs:
        found[job["name"]] = run(job)
        if "megatron.core.parallel_state" in sys.modules:
            # Megatron keeps its groups, and another job may ask for others.
            sys.modules["megatron.core.parallel_state"].destroy_model_parallel()
    torch.save(found, f"{results}/{rank}of{ranks}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    file, results = sys.argv[1:]
    jobs = torch.load(file)
    for ranks in sorted({job["ranks"] for job in jobs}):
        mine = [job for job in jobs if job["ranks"] == ranks]
        start_processes(run_all, (ranks, free_port(), mine, results), nprocs=ranks, start_method="fork")
