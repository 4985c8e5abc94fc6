"""One update in verl's own actor worker (FSDP2, CPU, float32): f-HAL's two ends, and the presets' first step.

One fixture makes all updates, since starting verl costs more than they do. How work is split is the matter of
test_engines.py.
"""

from types import SimpleNamespace

import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import PREFIX, SUMS
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.losses import fdo_loss, implicit_reward
from tests.support.engine_jobs import (
    LAM,
    OPTIMISERS,
    PREFERENCES,
    ROWS,
    SETTINGS,
    TEMPERATURE,
    difference,
    dump,
    job,
    joined,
    largest,
    on_policy,
    preference_rows,
    preferences,
    run_jobs,
)
from tests.support.worker import make_model

FSDP2 = ("sgd", "adamw")
LEVELS = ("sequence", "sequence_mean", "token")


@pytest.fixture(scope="module")
def updates(tmp_path_factory) -> SimpleNamespace:
    """Every update of this file, and the dumped batch of lambda = 1."""
    folder = tmp_path_factory.mktemp("workers")
    model = str(folder / "model")
    torch.manual_seed(0)
    make_model(model, layers=2, hidden=32)
    dump(
        folder,
        lam0=on_policy(lam=0.0),
        lam1=preferences(preference_rows(), lam=1.0),
    )
    flat = {loss: joined(1) if loss == "f_hal" else on_policy(lam=0.0) for loss in ROWS}
    for data in flat.values():  # every group's rewards are equal
        data["f_divergence_advantage"] = torch.where(
            data["f_divergence_side"] == 0, 0.0, data["f_divergence_advantage"]
        )
    dump(folder, **{f"flat {loss}": data for loss, data in flat.items()})
    jobs = [job(folder, f"flat {loss}", f"flat {loss}", loss, optimiser="adamw") for loss in ROWS]
    for optimiser in FSDP2:
        for batch, loss in (("lam0", "f_grpo"), ("lam0", "f_hal"), ("lam1", "f_hal")):
            name = f"{batch} {loss} {optimiser}"
            jobs.append(job(folder, name, batch, loss, optimiser=optimiser, micro=4))
    for level in LEVELS:
        for preset in ("paper", "released", "stable"):
            settings = FDivergenceConfig(preset=preset, level=level)
            name = f"{preset} {level}"
            batches = {f"{name} f_grpo": on_policy(0.0, settings), f"{name} f_hal": joined(1, settings)}
            dump(folder, **batches)
            section = "+actor_rollout_ref.actor.policy_loss.f_divergence"
            more = (f"{section}.preset={preset}", f"{section}.level={level}")
            jobs += [job(folder, f"{name} {loss}", f"{name} {loss}", loss, *more) for loss in ROWS]
    return SimpleNamespace(model=model, lam1=folder / "lam1.pt", found=run_jobs(jobs, folder))


def _weights(model: str) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters())


@pytest.mark.parametrize("optimiser", FSDP2)
def test_lambda_0_is_the_f_grpo_path_bit_for_bit(updates, optimiser):
    f_grpo, f_hal = (updates.found[f"lam0 {loss} {optimiser}"][0]["parameters"] for loss in ("f_grpo", "f_hal"))
    start = _weights(updates.model)
    assert f_grpo.keys() == f_hal.keys() == start.keys()
    for name, value in f_grpo.items():
        assert torch.equal(value, f_hal[name]), name
        assert not torch.equal(value, start[name]), name


def test_a_batch_of_equal_rewards_has_no_gradient_of_f_grpo_and_moves_by_weight_decay_alone(updates):
    found, start = updates.found["flat f_grpo"][0], _weights(updates.model)
    assert largest(found["gradients"]) == 0 and found["loss"] == [0.0]
    decay = 1 - OPTIMISERS["adamw"]["lr"] * OPTIMISERS["adamw"]["weight_decay"]
    for name, value in found["parameters"].items():
        assert torch.allclose(value, decay * start[name], rtol=1e-6, atol=0), name


def test_in_a_batch_of_equal_rewards_preference_rows_have_their_gradient(updates):
    found = updates.found["flat f_hal"][0]
    assert largest(found["gradients"]) > 1e-4
    assert found["metrics"][f"{SUMS}slope"] == 0 < found["metrics"][f"{SUMS}desirable_slope"]


@pytest.mark.parametrize("optimiser", FSDP2)
def test_lambda_1_is_a_plain_loop_with_fdo_loss(updates, optimiser):
    """One row at a time, without verl, from the batch that the worker was given."""
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
    found = updates.found[f"lam1 f_hal {optimiser}"][0]["parameters"]
    differences = [(found[name] - value).abs().max().item() for name, value in model.named_parameters()]
    moved = max((value - before[name]).abs().max().item() for name, value in model.named_parameters())
    assert max(differences) <= 1e-6
    assert moved > 1e-4  # a hundred times as much, or the bound would say nothing


@pytest.mark.parametrize("loss", ROWS)
@pytest.mark.parametrize("level", LEVELS)
def test_paper_and_released_have_the_same_gradient_and_slopes_in_the_first_step(updates, level, loss):
    """pi_theta = pi_old, which is not pi_ref; gamma = 1 of `released` is the constant of `paper`."""
    found = {preset: updates.found[f"{preset} {level} {loss}"][0] for preset in ("paper", "released", "stable")}
    gradients = {preset: values["gradients"] for preset, values in found.items()}
    assert largest(gradients["paper"]) > 1e-4
    assert difference(gradients["paper"], gradients["released"]) <= 1e-6
    assert difference(gradients["paper"], gradients["stable"]) > 0.01
    lam = LAM if loss == "f_hal" else 0.0
    slopes = {}
    for preset, values in found.items():
        assert len(values["micro_batches"]) > 1
        settings = FDivergenceConfig(preset=preset, level=level)
        metrics = divide_sums(values["metrics"], settings, lam=lam, compare_rollout=True)
        slopes[preset] = [
            metrics[PREFIX + name] for name in ("on_policy_slope", "preference_slope", "on_policy_slope_share")
        ]
    assert slopes["paper"] == pytest.approx(slopes["released"], rel=1e-5) and slopes["paper"][0] > 0
    assert (slopes["paper"][1] > 0) == (loss == "f_hal") == (slopes["paper"][2] < 1)
