"""verl's actor worker in processes of its own: makes the updates that a file of jobs asks for. Used by engine_jobs.py.

    python -m tests.support.worker_process JOBS RESULTS

A job: name, ranks, model folder, overrides of the configuration, file with a dumped batch (each data-parallel rank
takes its contiguous share, as verl deals them), temperature. Where asked, `load` (a checkpoint to go on from),
`reference` (the rows' log pi_ref are first computed here: by a reference worker with that model folder, or "adapter
off"), `per_micro_batch` and `planted` (controls that weight rows wrongly), `log_probs` (passes before the update: the
actor's, the reference's with the adapter off, or those of a reference worker), `export` (the weights as verl sends them
to the rollout engine, before the update), `save` (a folder to save the updated actor to, with its log-probs of the
rows; `shards`: Megatron's own form of the weights), `fails` (the update is to end as one that is not finite, or for
want of memory) and `checkpoint` (a folder to save to; then an update, and the same
update by a new worker that loads from there). With `trajectory`, so many updates on the same rows are all that is done.
Every job starts from the model folder's weights and a new optimiser. The ranks are forked from this process, which has
imported verl once for all of them.
"""

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import torch
import verl.trainer.ppo.v1  # noqa: F401  (what the ranks would each import)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp._common_utils import clean_tensor_name
from torch.multiprocessing import start_processes
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics
from verl.workers.engine.fsdp.utils import unfuse_moe_params
from verl.workers.engine_workers import ActorRolloutRefWorker

from fgrpo_plugin.host.replay_rows import NonFiniteUpdate
from tests.support.trajectories import where
from tests.support.worker import config, free_port, join_process_group, nested, update


def whole(engine: Any, of: Callable[[Any], torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """`of` each parameter that has it, put together from all shards; every rank must call it.

    FSDP 1 and mbridge put together whatever the parameters hold. Megatron's are named and shaped as Hugging Face's, and
    so are FSDP2's fused experts.
    """
    if isinstance(engine.module, FSDPModule):
        values = {name: of(value) for name, value in engine.module.named_parameters()}
        full = ((name, value.full_tensor().detach().clone()) for name, value in values.items() if value is not None)
        return dict(unfuse_moe_params(full))
    chunks = engine.module if isinstance(engine.module, list) else [engine.module]
    held = [(value, value.data) for chunk in chunks for value in chunk.parameters()]
    for value, _ in held:
        value.data = of(value).detach()  # type: ignore[union-attr]
    if isinstance(engine.module, FSDP):
        with FSDP.summon_full_params(engine.module, writeback=False):
            values = {clean_tensor_name(name): value for name, value in engine.module.named_parameters()}
            found = {name: value.detach().clone() for name, value in values.items()}
    else:
        found = {name: value.detach().clone() for name, value in engine.bridge.export_weights(engine.module)}
    for value, data in held:
        value.data = data
    return found


def parameters(engine: Any) -> dict[str, torch.Tensor]:
    return whole(engine, lambda value: value)


def gradients(engine: Any) -> dict[str, torch.Tensor]:
    return whole(engine, lambda value: value.main_grad if hasattr(value, "main_grad") else value.grad)


def averaging_micro_batches(loss: Callable, count: int) -> Callable:
    """The usual mistake: each half of `loss` divided by its rows in the micro-batch, and micro-batches averaged."""

    def wrong(data: Any, **kwargs: Any) -> Any:
        data = data.copy()
        side = data["f_divergence_side"]
        rows = torch.stack([(side == value).sum() for value in side])
        data["f_divergence_count"] = rows.float() * count
        return loss(data=data, **kwargs)

    return wrong


def multiplied(loss: Callable, on_policy: float = 1.0, preferences: float = 1.0) -> Callable:
    """A small mistake: each half of `loss` multiplied by a number, through its rows' denominators."""

    def wrong(data: Any, **kwargs: Any) -> Any:
        data = data.copy()
        factor = torch.where(data["f_divergence_side"] == 0, on_policy, preferences)
        data["f_divergence_count"] = data["f_divergence_count"] / factor
        return loss(data=data, **kwargs)

    return wrong


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Loss, metrics, gradients before clipping, parameters after the update, micro-batches, what was asked for."""
    torch.manual_seed(0)
    settings = config(job["model"], *job["overrides"], group=job["group"]).actor_rollout_ref
    worker = ActorRolloutRefWorker(settings, role="actor")
    worker.init_model()
    engine, loss = worker.actor.engine, worker.actor.loss_fn
    if job.get("load"):
        worker.load_checkpoint(job["load"])
    if job.get("planted"):
        loss = multiplied(loss, **job["planted"])
    if job.get("per_micro_batch"):
        loss = averaging_micro_batches(loss, job["per_micro_batch"])
    size, place = engine.get_data_parallel_size(), engine.get_data_parallel_rank()
    share = tu.chunk_tensordict(torch.load(job["batch"], weights_only=False), size)[place]
    if job.get("reference"):
        fill_reference(worker, settings, share, job)
    found: dict[str, Any] = {"micro_batches": [], "tokens": [], "shapes": []}
    if job.get("export"):
        found["export"] = {name: value.detach().clone() for name, value in engine.get_per_tensor_param()[0]}
    for name in job.get("log_probs", ()):
        compute = worker.compute_log_prob
        if name == "reference worker":
            reference = ActorRolloutRefWorker(settings, role="ref")
            reference.init_model()
            compute = reference.compute_ref_log_prob
        found[f"log_probs, {name}"] = log_probs(compute, share, no_lora_adapter=name == "adapter off")

    step = engine.optimizer_step

    def optimizer_step() -> float:
        if "gradients" not in found:  # of the first update
            found["gradients"] = gradients(engine)
        return step()

    def loss_fn(data: Any, **kwargs: Any) -> Any:
        found["micro_batches"].append(data["f_divergence_side"].tolist())
        found["tokens"].append(data["input_ids"].values().numel())
        if job.get("fails") == f"memory in micro-batch {len(found['tokens'])}":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(data=data, **kwargs)

    def before_forward(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found["shapes"].append(tuple(kwargs["input_ids"].shape))

    engine.optimizer_step = optimizer_step
    worker.set_loss_fn(loss_fn)
    for module in engine.module if isinstance(engine.module, list) else [engine.module]:
        module.register_forward_pre_hook(before_forward, with_kwargs=True)
    if job.get("trajectory"):
        found["trajectory"] = trajectory(worker, share, job)
        return found
    try:
        output = update(worker, share, ranks=size, temperature=job["temperature"])
    except (NonFiniteUpdate, torch.OutOfMemoryError) as error:
        if not job.get("fails"):
            raise
        if isinstance(error, torch.OutOfMemoryError):
            return {"failed": str(error), "parameters": parameters(engine)}
        error = pickle.loads(pickle.dumps(error))  # as Ray takes it to the driver
        return {"failed": [str(error), error.rows, error.about], "parameters": parameters(engine)}
    if engine.is_mp_src_rank_with_outputs():
        found["loss"] = output["metrics"]["loss"]
        found["metrics"] = reduced(output)
    found["parameters"] = parameters(engine)
    if job.get("save"):
        if job.get("shards"):  # asked for from the start, verl would want such weights to begin with
            engine.checkpoint_mananager.use_dist_checkpointing = True
        worker.save_checkpoint(job["save"])
        found["log_probs, saved"] = log_probs(worker.compute_log_prob, share)
    if job.get("checkpoint"):
        worker.save_checkpoint(job["checkpoint"])
        update(worker, share, ranks=size, temperature=job["temperature"])
        found["updated again"] = parameters(engine)
        resumed = ActorRolloutRefWorker(settings, role="actor")
        resumed.init_model()
        resumed.set_loss_fn(loss)
        resumed.load_checkpoint(job["checkpoint"])
        found["loaded"] = parameters(resumed.actor.engine)
        update(resumed, share, ranks=size, temperature=job["temperature"])
        found["updated after loading"] = parameters(resumed.actor.engine)
    return found


def reduced(output: Any) -> dict[str, float]:
    """Metrics of an update, as verl's driver reduces what micro-batches reported."""
    return {name: float(value) for name, value in reduce_metrics(dict(output["metrics"])).items()}


def trajectory(worker: Any, share: Any, job: dict[str, Any]) -> list[dict[str, float]]:
    """So many updates on the same rows: of each the metrics, on a rank that has them, and where the parameters are."""
    engine, start, found = worker.actor.engine, parameters(worker.actor.engine), []
    for _ in range(job["trajectory"]):
        output = update(worker, share, ranks=engine.get_data_parallel_size(), temperature=job["temperature"])
        mine = reduced(output) if engine.is_mp_src_rank_with_outputs() else {}
        found.append(mine | where(parameters(engine), start))
    return found


def fill_reference(worker: Any, settings: Any, share: Any, job: dict[str, Any]) -> None:
    """Give the rows the log pi_ref that verl's own pass computes, at the temperature of the rollouts as in verl."""
    asked = {"temperature": job["temperature"]}
    if job["reference"] == "adapter off":
        rows = log_probs(worker.compute_log_prob, share, no_lora_adapter=True, **asked)
    else:
        of_reference = copy.deepcopy(settings)
        of_reference.model.path = job["reference"]
        other = ActorRolloutRefWorker(of_reference, role="ref")
        other.init_model()
        rows = log_probs(other.compute_ref_log_prob, share, **asked)
    responses = share["responses"].offsets().diff().tolist()
    share["ref_log_prob"] = nested(row[-n:] for row, n in zip(rows, responses, strict=True))


def log_probs(compute: Callable, share: Any, temperature: float = 1.0, **asked: Any) -> list[torch.Tensor] | None:
    """Log-probs of each row's tokens after its first; None on a rank that has no output."""
    batch = share.copy()
    tu.assign_non_tensor(batch, calculate_entropy=False, compute_loss=False, temperature=temperature, **asked)
    output = compute(batch)
    return None if output is None else [row[:-1].clone() for row in output["log_probs"].unbind()]


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
