"""Updates in verl's own workers: what batches hold, what a job asks for, and what its ranks report.

Used by tests/host/{worker/test_updates,test_engines,cpu/test_megatron}.py, tests/realmodel, tests/trajectories and
tests/last_release; the ranks run `tests.support.worker_process`, since each belongs to a process group.
"""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver.joining import as_queue_rows, deal, joined_order, preference_numbers
from fgrpo_plugin.host.driver.rows import on_policy_fields
from fgrpo_plugin.preference.tokens import TokenRow
from tests.support.worker import GROUP, attach_advantages, f_hal, in_order, make_model, make_rows, nested

ROOT = Path(__file__).parents[2]
TEMPERATURE = 0.7
# Response tokens: with at most TOKENS in a micro-batch, these make micro-batches of very different numbers of rows.
RESPONSES = [2, 3, 30, 4, 2, 5, 3, 2, 28, 2, 4, 3, 3, 2, 5, 26]
PREFERENCE_RESPONSES = [25, 3, 4, 30, 28, 2, 3, 27, 22, 6, 5, 24]
TOKENS = 40
ON_POLICY, PREFERENCES = len(RESPONSES), len(PREFERENCE_RESPONSES)
ROWS = {"f_grpo": ON_POLICY, "f_hal": ON_POLICY + PREFERENCES}
LAM = 0.3
SETTINGS = FDivergenceConfig()
# A mixture of experts, of `make_model`.
EXPERTS = {
    "family": "Qwen3Moe",
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,  # as Megatron's router does
}
OPTIMISERS = {
    # The step is the gradient itself: a wrong scale of the loss shows, which Adam's first step and clipping hide.
    "sgd": {"optimizer": "SGD", "lr": 0.05, "weight_decay": 0.0, "clip_grad": 1e6},
    # Of fifty steps on the same rows.
    "sgd slow": {"optimizer": "SGD", "lr": 0.02, "weight_decay": 0.0, "clip_grad": 1e6},
    # verl's optimiser and clipping. Adam's first step is lr g / (|g| + eps): where |g| is rounding noise, the
    # default eps of 1e-8 turns it into a full step of random sign. This eps lies above the noise, which is 1e-7.
    "adamw": {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.01, "clip_grad": 1.0, "eps": 1e-2},
    # The same of both engines: Megatron spares norms and biases from weight decay.
    "adam fsdp2": {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.0, "clip_grad": 1.0, "eps": 1e-2},
    "adam megatron": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "clip_grad": 1.0, "adam_eps": 1e-2},
}


def _reference(lengths: list[int], seed: int) -> list[torch.Tensor]:
    """log pi_ref near what a random model of about 300 tokens gives."""
    generator = torch.Generator().manual_seed(seed)
    return [-5.7 + 0.5 * torch.randn(n, generator=generator) for n in lengths]


def on_policy(lam: float, settings: FDivergenceConfig = SETTINGS) -> TensorDict:
    """Rows as they stand in the queue when the actor is updated."""
    data = make_rows([1 + i % 4 for i in range(ON_POLICY)], RESPONSES)
    data["old_log_probs"] = data.pop("rollout_log_probs")
    data["ref_log_prob"] = nested(_reference(RESPONSES, seed=3))
    attach_advantages(data, settings)
    data.update(on_policy_fields(ON_POLICY, lam))
    return data


def preference_rows() -> list[TokenRow]:
    """D+ and D- in turn, as the sampler draws them."""
    generator = torch.Generator().manual_seed(6)
    rows = []
    for i, n in enumerate(PREFERENCE_RESPONSES):
        p = 2 + i % 5
        ids = torch.randint(3, 200, (p + n,), generator=generator).tolist()
        rows.append(TokenRow(ids[:p], ids[p:], i % 2 == 0, None, f"row {i}"))
    return rows


def preferences(rows: list[TokenRow], lam: float, settings: FDivergenceConfig = SETTINGS) -> TensorDict:
    """The same rows as the driver joins them; a row's reference log-probs do not depend on the order."""
    reference = [_reference([len(row.response_ids)], seed=sum(row.response_ids))[0] for row in rows]
    fields = as_queue_rows(rows, reference) | preference_numbers(rows, settings, lam)
    return TensorDict(fields, batch_size=len(rows))


def joined(ranks: int, settings: FDivergenceConfig = SETTINGS) -> TensorDict:
    """Both kinds of rows in the order of a one-mini-batch update on this many data-parallel ranks."""
    rows = [row for rank in deal(preference_rows(), ranks) for row in rank]
    order = joined_order(ON_POLICY, 1, ranks, PREFERENCES // ranks)
    return in_order(order, on=on_policy(LAM, settings), off=preferences(rows, LAM, settings))


def prepare(folder: Path, layers: int = 2, hidden: int = 32, **settings: object) -> None:
    """A model of `make_model` and the batches of both losses, for one and for two data-parallel ranks."""
    torch.manual_seed(0)
    make_model(str(folder / "model"), layers, hidden, key_value_heads=2, **settings)
    dump(folder, f_grpo1=on_policy(lam=0.0), f_grpo2=on_policy(lam=0.0), f_hal1=joined(1), f_hal2=joined(2))


def dump(folder: Path, **batches: TensorDict) -> None:
    """Write batches to where jobs look for them."""
    for name, batch in batches.items():
        torch.save(batch, folder / f"{name}.pt")


def job(
    folder: Path,
    name: str,
    batch: str,
    algorithm: str,
    *more: str,
    optimiser: str = "sgd",
    micro: int = 0,
    ranks: int = 1,
    group: str = "cpu",
    **asked: object,
) -> dict:
    """One update by an actor worker.

    Args:
        folder: holds the model and the batches of `dump`.
        batch: name of the batch.
        algorithm: f_grpo or f_hal.
        more: further overrides of the configuration.
        optimiser: key of OPTIMISERS.
        micro: rows in a micro-batch; 0 for as many as TOKENS allows.
        ranks: processes.
        group: config group that selects the engine.
        asked: what else `worker_process.run` should do.
    """
    model = str(folder / "model")
    # lambda comes with the rows; the configuration's own selects the loss alone.
    overrides = ["algorithm.adv_estimator=f_grpo"]
    if algorithm == "f_hal":
        overrides = [*f_hal(model), f"+data.preference.batch_size={PREFERENCES}"]
    overrides += [
        f"trainer.n_gpus_per_node={ranks}",
        f"data.max_prompt_length={TOKENS - max(RESPONSES)}",
        f"data.max_response_length={max(RESPONSES)}",
        f"data.train_batch_size={ON_POLICY // GROUP}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={ON_POLICY // GROUP}",
    ]
    actor = "actor_rollout_ref.actor"
    for key, value in OPTIMISERS[optimiser].items():
        place = f"+{actor}.optim.override_optimizer_config" if key.endswith("eps") else f"{actor}.optim"
        overrides.append(f"{place}.{key}={value}")
    overrides.append(f"{actor}.optim.total_training_steps=100")
    overrides += [f"actor_rollout_ref.rollout.temperature={TEMPERATURE}"]
    # Under Megatron verl refuses micro-batches of more rows than a step has rollouts, which ours with preferences are.
    at_once = micro if group == "cpu_megatron" and ON_POLICY % (micro or 1) else 1
    if not micro or at_once > 1:
        overrides += [f"{actor}.use_dynamic_bsz=true", f"{actor}.ppo_max_token_len_per_gpu={TOKENS * at_once}"]
    else:
        overrides += [f"{actor}.ppo_micro_batch_size_per_gpu={micro}"]
        size = f"log_prob_micro_batch_size_per_gpu={math.gcd(micro, ON_POLICY)}"
        overrides += [f"actor_rollout_ref.{part}.{size}" for part in ("ref", "rollout")]
    return {
        "name": name,
        "ranks": ranks,
        "group": group,
        "model": model,
        "overrides": [*overrides, *more],
        "batch": str(folder / f"{batch}.pt"),
        "temperature": TEMPERATURE,
        **asked,
    }


def adapter(model: str, folder: Path, std: float = 0.1) -> list[str]:
    """Overrides that train a LoRA adapter which is not zero, so that both of its matrices have a gradient."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), settings)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=std)
    adapted.save_pretrained(folder)
    section = "actor_rollout_ref.model"
    return [f"{section}.lora_rank=4", f"{section}.lora_alpha=8", f"{section}.lora_adapter_path={folder}"]


def run_jobs(jobs: list[dict], folder: Path) -> dict[str, list[dict]]:
    """What each rank reports of each job."""
    torch.save(jobs, folder / "jobs.pt")
    # One thread: ranks share the machine's cores.
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.worker_process", str(folder / "jobs.pt"), str(folder)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            failed = process.wait(timeout=3000)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert not failed, (folder / "log").read_text()[-4000:]
    ranks = {job["name"]: [(rank, job["ranks"]) for rank in range(job["ranks"])] for job in jobs}
    found = {place: torch.load(folder / "{}of{}.pt".format(*place)) for places in ranks.values() for place in places}
    return {name: [found[place][name] for place in places] for name, places in ranks.items()}


def largest(tensors: dict[str, torch.Tensor]) -> float:
    return max(value.abs().max().item() for value in tensors.values())


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """max|two - one| / max|one| over all entries; both name the same tensors."""
    assert one.keys() == two.keys()
    return largest({name: two[name] - value for name, value in one.items()}) / largest(one)
