"""verl's actor worker in processes of its own: makes the updates that a file of jobs asks for. Used by test_workers.py.

    python -m tests.host.worker_process JOBS RESULTS

A job: name, ranks, model folder, overrides of the configuration, file with a dumped batch (each rank takes its
contiguous share, as the host deals them), temperature. Every job starts from the folder's weights and a new optimiser.
The ranks are forked from this process, which has imported the host once for all of them.
"""

import sys
from typing import Any

import torch
import verl.trainer.ppo.v1  # noqa: F401  (what the ranks would each import)
from torch.multiprocessing import start_processes
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from benchmarks.worker import config, free_port, join_process_group, update


def whole(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Copies of all shards together; every rank must call it."""
    return {name: tensor.full_tensor().detach().clone() for name, tensor in tensors.items()}


def run(job: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """Gradients before clipping, parameters after the update, and this rank's rows in each micro-batch."""
    worker = ActorRolloutRefWorker(config(job["model"], *job["overrides"]).actor_rollout_ref, role="actor")
    worker.init_model()
    engine = worker.actor.engine
    step, forward, found = engine.optimizer_step, engine.forward_step, {"micro_batches": []}

    def optimizer_step() -> float:
        found["gradients"] = whole({name: value.grad for name, value in engine.module.named_parameters()})
        return step()

    def forward_step(micro_batch: Any, **kwargs: Any) -> Any:
        side = micro_batch.get("f_divergence_side", torch.zeros(len(micro_batch)))
        found["micro_batches"].append(side.tolist())
        return forward(micro_batch, **kwargs)

    engine.optimizer_step, engine.forward_step = optimizer_step, forward_step
    shares = tu.chunk_tensordict(torch.load(job["batch"], weights_only=False), ranks)
    update(worker, shares[rank], ranks=ranks, temperature=job["temperature"])
    return found | {"parameters": whole(dict(engine.module.named_parameters()))}


def run_all(rank: int, ranks: int, port: int, jobs: list[dict[str, Any]], results: str) -> None:
    """Every job of one group size, in one rank; what it found goes to a file."""
    join_process_group(rank, ranks, port)
    torch.save({job["name"]: run(job, rank, ranks) for job in jobs}, f"{results}/{rank}of{ranks}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    file, results = sys.argv[1:]
    jobs = torch.load(file)
    for ranks in sorted({job["ranks"] for job in jobs}):
        mine = [job for job in jobs if job["ranks"] == ranks]
        start_processes(run_all, (ranks, free_port(), mine, results), nprocs=ranks, start_method="fork")
