"""One update in verl's own actor worker (FSDP2, CPU, float32): f-HAL's two ends, and two ranks against one.

The workers run in processes of their own, since each belongs to a process group; one fixture makes all updates, since
starting the host costs more than they do.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from benchmarks.worker import GROUP, attach_advantages, f_hal, in_order, make_model, make_rows, nested
from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.preferences import as_host_rows, deal, joined_order, on_policy_fields, preference_numbers
from fgrpo_plugin.losses import fdo_loss, implicit_reward
from fgrpo_plugin.preference.tokens import TokenRow

ROOT = Path(__file__).parents[2]
TEMPERATURE = 0.7
# Response tokens: with at most TOKENS in a micro-batch, these make micro-batches of very different numbers of rows.
RESPONSES = [2, 3, 30, 4, 2, 5, 3, 2, 28, 2, 4, 3, 3, 2, 5, 26]
PREFERENCE_RESPONSES = [25, 3, 4, 30, 28, 2, 3, 27, 22, 6, 5, 24]
TOKENS = 40
ON_POLICY, PREFERENCES = len(RESPONSES), len(PREFERENCE_RESPONSES)
LAM = 0.3
SETTINGS = FDivergenceConfig()
OPTIMISERS = {
    # The step is the gradient itself: a wrong scale of the loss shows, which Adam's first step and clipping hide.
    "sgd": {"optimizer": "SGD", "lr": 0.05, "weight_decay": 0.0, "clip_grad": 1e6},
    # The host's optimiser and clipping. Adam's first step is lr g / (|g| + eps): where |g| is rounding noise, the
    # default eps of 1e-8 turns it into a full step of random sign. This eps lies above the noise, which is 1e-7.
    "adamw": {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.01, "clip_grad": 1.0, "eps": 1e-2},
}


def _reference(lengths: list[int], seed: int) -> list[torch.Tensor]:
    """log pi_ref near what a random model of about 300 tokens gives."""
    generator = torch.Generator().manual_seed(seed)
    return [-5.7 + 0.5 * torch.randn(n, generator=generator) for n in lengths]


def _on_policy(lam: float) -> TensorDict:
    """Rows as they stand in the queue when the actor is updated."""
    data = make_rows([1 + i % 4 for i in range(ON_POLICY)], RESPONSES)
    data["old_log_probs"] = data.pop("rollout_log_probs")
    data["ref_log_prob"] = nested(_reference(RESPONSES, seed=3))
    attach_advantages(data, SETTINGS)
    data.update(on_policy_fields(ON_POLICY, lam))
    return data


def _preference_rows() -> list[TokenRow]:
    """D+ and D- in turn, as the sampler draws them."""
    generator = torch.Generator().manual_seed(6)
    rows = []
    for i, n in enumerate(PREFERENCE_RESPONSES):
        p = 2 + i % 5
        ids = torch.randint(3, 200, (p + n,), generator=generator).tolist()
        rows.append(TokenRow(ids[:p], ids[p:], i % 2 == 0, None, f"row {i}"))
    return rows


def _preferences(rows: list[TokenRow], lam: float) -> TensorDict:
    """The same rows as the driver joins them; a row's reference log-probs do not depend on the order."""
    reference = [_reference([len(row.response_ids)], seed=sum(row.response_ids))[0] for row in rows]
    fields = as_host_rows(rows, reference) | preference_numbers(rows, SETTINGS, lam)
    return TensorDict(fields, batch_size=len(rows))


def _joined(ranks: int) -> TensorDict:
    """Both kinds of rows in the order of a one-mini-batch update on this many ranks."""
    rows = [row for rank in deal(_preference_rows(), ranks) for row in rank]
    order = joined_order(ON_POLICY, 1, ranks, PREFERENCES // ranks)
    return in_order(order, on=_on_policy(LAM), off=_preferences(rows, LAM))


def _updates(jobs: list[dict], folder: Path) -> dict[str, list[dict]]:
    """What each rank reports of each job."""
    torch.save(jobs, folder / "jobs.pt")
    # One thread: ranks share the machine's cores.
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.host.worker_process", str(folder / "jobs.pt"), str(folder)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            failed = process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert not failed, (folder / "log").read_text()[-4000:]
    ranks = {job["name"]: [(rank, job["ranks"]) for rank in range(job["ranks"])] for job in jobs}
    found = {place: torch.load(folder / "{}of{}.pt".format(*place)) for places in ranks.values() for place in places}
    return {name: [found[place][name] for place in places] for name, places in ranks.items()}


@pytest.fixture(scope="module")
def updates(tmp_path_factory) -> SimpleNamespace:
    """Every update of this file: dumped batches, and what one and two ranks made of them."""
    folder = tmp_path_factory.mktemp("workers")
    model = str(folder / "model")
    torch.manual_seed(0)
    make_model(model, layers=2, hidden=32)
    rows = _preference_rows()
    for name, batch in {
        "lam0": _on_policy(lam=0.0),
        "lam1": _preferences(rows, lam=1.0),
        "joined1": _joined(1),
        "joined2": _joined(2),
    }.items():
        torch.save(batch, folder / f"{name}.pt")

    def job(name: str, batch: str, algorithm: str, optimiser: str = "sgd", micro: int = 0, ranks: int = 1):
        # lambda comes with the rows; the configuration's own selects the loss alone.
        overrides = ["algorithm.adv_estimator=f_grpo"]
        if algorithm == "f_hal":
            overrides = [*f_hal(model), f"+data.preference.batch_size={PREFERENCES}"]
        overrides += [
            f"data.train_batch_size={ON_POLICY // GROUP}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={ON_POLICY // GROUP}",
        ]
        settings = dict(OPTIMISERS[optimiser])
        eps = settings.pop("eps", None)
        overrides += [f"actor_rollout_ref.actor.optim.{key}={value}" for key, value in settings.items()]
        if eps is not None:
            overrides.append(f"+actor_rollout_ref.actor.optim.override_optimizer_config.eps={eps}")
        actor = "actor_rollout_ref.actor"
        overrides += [f"actor_rollout_ref.rollout.temperature={TEMPERATURE}"]
        if not micro:
            overrides += [f"{actor}.use_dynamic_bsz=true", f"{actor}.ppo_max_token_len_per_gpu={TOKENS}"]
        else:
            size = "log_prob_micro_batch_size_per_gpu"
            overrides += [f"{actor}.ppo_micro_batch_size_per_gpu={micro}"]
            overrides += [f"actor_rollout_ref.{part}.{size}={micro}" for part in ("ref", "rollout")]
        return {
            "name": name,
            "ranks": ranks,
            "model": model,
            "overrides": overrides,
            "batch": str(folder / f"{batch}.pt"),
            "temperature": TEMPERATURE,
        }

    jobs = [
        job("f_grpo whole", "lam0", "f_grpo", micro=ON_POLICY),
        job("f_hal whole", "joined1", "f_hal", micro=ON_POLICY + PREFERENCES),
        job("f_grpo two ranks", "lam0", "f_grpo", ranks=2),
        job("f_hal two ranks", "joined2", "f_hal", ranks=2),
    ]
    for optimiser in OPTIMISERS:
        jobs += [job(f"lam0 {loss} {optimiser}", "lam0", loss, optimiser, micro=4) for loss in ("f_grpo", "f_hal")]
        jobs.append(job(f"lam1 {optimiser}", "lam1", "f_hal", optimiser, micro=4))
    return SimpleNamespace(model=model, lam1=folder / "lam1.pt", found=_updates(jobs, folder))


def _weights(model: str) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_lambda_0_is_the_f_grpo_path_bit_for_bit(updates, optimiser):
    f_grpo, f_hal = (updates.found[f"lam0 {loss} {optimiser}"][0]["parameters"] for loss in ("f_grpo", "f_hal"))
    start = _weights(updates.model)
    assert f_grpo.keys() == f_hal.keys() == start.keys()
    for name, value in f_grpo.items():
        assert torch.equal(value, f_hal[name]), name
        assert not torch.equal(value, start[name]), name


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_lambda_1_is_a_plain_loop_with_fdo_loss(updates, optimiser):
    """One row at a time, without the host, from the batch that the worker was given."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(updates.model, dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    data = torch.load(updates.lam1, weights_only=False)
    rewards, fields = [], ("prompts", "responses", "ref_log_prob")
    for prompt, response, reference in zip(*(data[name].unbind() for name in fields), strict=True):
        logits = model(torch.cat([prompt, response]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        log_prob = (logits / TEMPERATURE).log_softmax(dim=-1).gather(1, response.unsqueeze(1)).T
        mask = torch.ones_like(log_prob)
        rewards.append(implicit_reward(log_prob, reference.unsqueeze(0), mask, SETTINGS.beta))
    desirable = torch.arange(PREFERENCES) % 2 == 0
    loss = fdo_loss(torch.cat(rewards), desirable, SETTINGS.build_divergence()) / SETTINGS.beta  # scale unit
    loss.backward()

    settings = dict(OPTIMISERS[optimiser])
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.pop("clip_grad"))
    getattr(torch.optim, settings.pop("optimizer"))(model.parameters(), **settings).step()
    found = updates.found[f"lam1 {optimiser}"][0]["parameters"]
    differences = [(found[name] - value).abs().max().item() for name, value in model.named_parameters()]
    moved = max((value - before[name]).abs().max().item() for name, value in model.named_parameters())
    assert max(differences) <= 1e-6
    assert moved > 1e-4  # a hundred times as much, or the bound would say nothing


@pytest.mark.parametrize("algorithm", ["f_grpo", "f_hal"])
def test_two_ranks_with_uneven_micro_batches_give_the_gradient_of_one(updates, algorithm):
    (one,) = updates.found[f"{algorithm} whole"]
    two = updates.found[f"{algorithm} two ranks"]
    (whole,) = one["micro_batches"]
    sizes = [[len(part) for part in rank["micro_batches"]] for rank in two]
    assert [sum(rank) for rank in sizes] == [len(whole) // 2] * 2
    assert all(len(set(rank)) > 1 for rank in sizes) and sizes[0] != sizes[1], sizes
    if algorithm == "f_hal":
        kinds = [set(part) for rank in two for part in rank["micro_batches"]]
        assert {0.0} in kinds and any(0.0 not in kind for kind in kinds) and {0.0, 1.0, -1.0} in kinds, kinds
    expected = one["gradients"]
    largest = max(value.abs().max().item() for value in expected.values())
    assert largest > 1e-3
    for rank in two:
        assert rank["gradients"].keys() == expected.keys()
        worst = max((rank["gradients"][name] - value).abs().max().item() for name, value in expected.items())
        assert worst <= 1e-5 * largest
