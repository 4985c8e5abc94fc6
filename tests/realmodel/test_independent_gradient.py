"""One update in verl's own worker (FSDP2, CPU, float32) against a plain transformers loop on the same dumped rows.

verl's side is all of ours: the driver's numbers, verl's reference pass, uneven micro-batches, the loss, the optimiser.
The other side is tests/support/independent.py, which knows the definitions alone. The policy is not the reference.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.realmodel.model import smollm2
from tests.support import independent
from tests.support.engine_jobs import OPTIMISERS, TEMPERATURE, adapter, difference, dump, job, largest, run_jobs
from tests.support.verl_update import queued
from tests.support.worker import make_data, make_model

LAM = 0.3
LOSSES, TRAINED = ("f_grpo", "f_hal"), ("full", "LoRA")
# preset, divergence -> optimiser
SMALL = {
    ("stable", "pearson"): "sgd",
    ("paper", "kl"): "adamw",
    ("released", "jensen_shannon"): "sgd",
}
REAL = {("stable", "pearson"): "sgd", ("paper", "kl"): "adamw"}
BOUND = 1e-5
MICRO_BATCHES = 10  # of the small model's f-HAL rows
RESPONSE = 60  # tokens, at most, that SmolLM2 gives
# prompt, chosen, rejected
PAIRS = (
    ("How many days has a week?", "A week has 7 days.", "It depends on the year: some weeks are longer than others."),
    ("Name a colour of the rainbow.", "Red is one of them, the outermost.", "I would rather not talk about colours."),
)


@dataclass(frozen=True)
class Place:
    """Where the models of one kind of training and the rows lie.

    Attributes:
        folder: `model` is the policy's, without its adapter; `rows.json` the dumped rows.
        adapter: the policy's, or None.
        reference: the model of log pi_ref.
        temperature: of the rollouts.
        more: overrides for verl.
    """

    folder: Path
    adapter: Path | None
    reference: Path
    temperature: float
    more: tuple[str, ...] = ()

    def rows(self, loss: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """On-policy rows and, for f-HAL, preference rows."""
        dumped = json.loads((self.folder / "rows.json").read_text())
        return dumped["rows"], dumped["preferences"] if loss == "f_hal" else []

    def job(self, loss: str, preset: str, divergence: str, optimiser: str, **asked: Any) -> dict[str, Any]:
        name = " ".join([self.folder.name, loss, preset, divergence, *asked])
        settings = FDivergenceConfig(preset=preset, divergence=divergence)
        rows, preferences = self.rows(loss)
        dump(self.folder, **{name: queued(rows, preferences, settings, LAM if preferences else 0.0)})
        section = "+actor_rollout_ref.actor.policy_loss.f_divergence"
        more = [*self.more, f"{section}.preset={preset}", f"{section}.divergence={divergence}"]
        reference = "adapter off" if self.adapter else str(self.reference)
        asked |= {"optimiser": optimiser, "reference": reference, "temperature": self.temperature}
        return job(self.folder, name, name, loss, *more, **asked)


def _moved(source: Path, target: Path, share: float) -> None:
    """A policy that is not its reference: every weight of `source` with noise of this share of its tensor's size."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=share * value.square().mean().sqrt().item())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    make_data(str(target))


def _places(
    folder: Path, reference: Path, dumped: dict, *more: str, share: float, std: float, temperature: float
) -> dict[str, Place]:
    """Both kinds of training, from one reference."""
    for name in TRAINED:
        (folder / name).mkdir()
        (folder / name / "rows.json").write_text(json.dumps(dumped))
    _moved(reference, folder / "full" / "model", share)
    (folder / "LoRA" / "model").symlink_to(reference)
    torch.manual_seed(2)
    lora = adapter(str(reference), folder / "adapter", std)
    return {
        "full": Place(folder / "full", None, reference, temperature, more),
        "LoRA": Place(folder / "LoRA", folder / "adapter", reference, temperature, (*more, *lora)),
    }


def _random_rows() -> dict[str, list[dict[str, Any]]]:
    """Four groups of four in turn, responses of very different lengths; one group flat, some tokens not the model's."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 200, (count,), generator=draw).tolist()

    rows, eighths = [], [[0, 8, 2, 5], [3, 3, 3, 3], [1, 0, 0, 8], [8, 6, 0, 7]]
    for i, length in enumerate([2, 3, 30, 4, 2, 5, 3, 2, 28, 2, 4, 3, 3, 2, 5, 26]):
        row = {"prompt": ids(1 + i % 4), "response": ids(length), "mask": [1] * length, "group": f"prompt {i % 4}"}
        row["old_log_prob"] = (-torch.rand(length, generator=draw)).tolist()
        rows.append(row | {"reward": eighths[i % 4][i // 4] / 8})
    rows[2]["mask"][5:12] = [0] * 7
    rows[5]["mask"] = [0] * 5  # of the flat group: not counted
    preferences = [
        {"prompt": ids(2 + i % 5), "response": ids(length), "desirable": i % 2 == 0}
        for i, length in enumerate([25, 3, 4, 30, 28, 2, 3, 27, 22, 6, 5, 24])
    ]
    return {"rows": rows, "preferences": preferences}


def _plain(place: Place, loss: str, preset: str, divergence: str, lam: float) -> tuple[Any, float]:
    """The policy with the gradient of the plain loop, and the loss."""
    model = AutoModelForCausalLM.from_pretrained(place.folder / "model", dtype=torch.float32)
    if place.adapter is None:
        reference = AutoModelForCausalLM.from_pretrained(place.reference, dtype=torch.float32)
    else:
        from peft import PeftModel

        reference = model = PeftModel.from_pretrained(model, place.adapter, is_trainable=True)
    rows, preferences = place.rows(loss)
    references, theirs = (
        independent.reference_log_probs(reference, some, place.temperature) for some in (rows, preferences)
    )
    wanted = independent.Loss(divergence, independent.PRESETS[preset], lam, place.temperature)
    return model, independent.gradient(model, rows, references, preferences, theirs, wanted).loss


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _check(place: Place, found: dict[str, Any], loss: str, preset: str, divergence: str, optimiser: str) -> float:
    """max|dg| / max|g|, once loss, gradient and updated parameters have been compared."""
    model, value = _plain(place, loss, preset, divergence, LAM if loss == "f_hal" else 0.0)
    assert len(found["micro_batches"]) > 1
    gradients = _gradients(model)
    assert set(gradients) == {name for name, value in model.named_parameters() if value.requires_grad}
    assert largest(gradients) > 1e-3
    ratio = difference(gradients, found["gradients"])
    assert ratio <= BOUND
    assert found["loss"] == pytest.approx([value], rel=1e-5, abs=1e-5)  # terms near 1, of both signs

    settings = dict(OPTIMISERS[optimiser])
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    before = {name: value.detach().clone() for name, value in trained.items()}
    torch.nn.utils.clip_grad_norm_(trained.values(), settings.pop("clip_grad"))
    getattr(torch.optim, settings.pop("optimizer"))(trained.values(), **settings).step()
    moves = {name: value.detach() - before[name] for name, value in trained.items()}
    for name, value in model.named_parameters():
        if name not in trained:
            assert torch.equal(found["parameters"][name], value), name
    largest_parameter = largest(before)
    theirs = {name: found["parameters"][name] - value for name, value in before.items()}
    # The difference of two parameters in float32 has the rounding of the parameters.
    assert difference(moves, theirs) <= BOUND + 2**-23 * largest_parameter / largest(moves)
    return ratio


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[dict[str, Place], dict[str, dict[str, Any]]]:
    """Every update of a random Llama of three layers, its head tied to its embedding as SmolLM2's is."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    make_model(str(folder / "reference"), 3, 32, key_value_heads=2, family="Llama", tie_word_embeddings=True)
    places = _places(folder, folder / "reference", _random_rows(), share=0.3, std=0.1, temperature=TEMPERATURE)
    jobs = [
        place.job(loss, *of, optimiser)
        for place in places.values()
        for loss in LOSSES
        for of, optimiser in SMALL.items()
    ]
    jobs.append(places["full"].job("f_hal", "stable", "pearson", "sgd", per_micro_batch=MICRO_BATCHES))
    return places, {name: ranks[0] for name, ranks in run_jobs(jobs, folder).items()}


@pytest.mark.parametrize("preset, divergence", SMALL)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("loss", LOSSES)
def test_an_update_of_a_small_model_is_that_of_a_plain_loop(small, figure, loss, trained, preset, divergence):
    places, found = small
    update = found[f"{trained} {loss} {preset} {divergence}"]
    assert len({len(part) for part in update["micro_batches"]}) > 1  # uneven, or a mean of means would pass, too
    ratio = _check(places[trained], update, loss, preset, divergence, SMALL[preset, divergence])
    figure(f"plain loop, small, {trained}, {preset} {divergence}", loss, ratio)


def test_the_bound_sees_a_thousandth(small, monkeypatch):
    """The controls: mistakes of the kinds that the comparison is there for, on either side."""
    places, found = small
    place, update = places["full"], found["full f_hal stable pearson"]["gradients"]

    def seen(place: Place = place, lam: float = LAM) -> float:
        model, _ = _plain(place, "f_hal", "stable", "pearson", lam)
        return difference(_gradients(model), update)

    assert seen() <= BOUND
    assert seen(lam=LAM * 1.001) > 10 * BOUND
    assert seen(replace(place, reference=place.folder / "model")) > 0.01  # log pi_ref matters
    monkeypatch.setattr(independent, "BETA", independent.BETA * 1.001)
    assert seen() > 10 * BOUND
    wrong = found["full f_hal stable pearson per_micro_batch"]
    assert len(wrong["micro_batches"]) == MICRO_BATCHES
    assert difference(update, wrong["gradients"]) > 0.1


@pytest.fixture(scope="module")
def smollm2_places(tmp_path_factory) -> Iterator[dict[str, Place]]:
    """SmolLM2, and eight responses that it gave to two prompts."""
    folder = tmp_path_factory.mktemp("smollm2")
    model = smollm2(folder / "reference")
    make_data(str(model))
    length = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=250"
    more = [length, "data.max_prompt_length=96", f"data.max_response_length={RESPONSE}", "data.train_batch_size=2"]
    more += ["actor_rollout_ref.actor.ppo_mini_batch_size=2", "actor_rollout_ref.rollout.temperature=1"]
    yield _places(folder, model, _sampled_rows(model), *more, share=0.01, std=0.02, temperature=1.0)
    shutil.rmtree(folder)


def _sampled_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def asked(text: str) -> list[int]:
        chat = [{"role": "user", "content": text}]
        return tokenizer(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)).input_ids

    torch.manual_seed(3)
    rows, rewards = [], iter([0, 1, 5 / 8, 1 / 4, 1, 0, 0, 3 / 8])
    for text, limit in (("Tom had 9 nuts and ate 2. How many are left?", RESPONSE), ("What is a prime number?", 30)):
        prompt = torch.tensor([asked(text)])
        settings = {"temperature": 1.0, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": limit}
        sampled = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, **settings)
        for ids in sampled.tolist():
            response = ids[prompt.shape[1] :]
            if tokenizer.eos_token_id in response:
                response = response[: response.index(tokenizer.eos_token_id) + 1]
            row = {"prompt": asked(text), "response": response, "mask": [1] * len(response), "group": text}
            with torch.no_grad():
                row["old_log_prob"] = independent.log_probs(model, row, temperature=1.0).tolist()
            rows.append(row | {"reward": next(rewards)})
    preferences = [
        {"prompt": asked(prompt), "response": tokenizer(text + tokenizer.eos_token).input_ids, "desirable": desirable}
        for prompt, *texts in PAIRS
        for text, desirable in zip(texts, (True, False), strict=True)
    ]
    return {"rows": rows, "preferences": preferences}


@pytest.mark.long
@pytest.mark.parametrize("preset, divergence", REAL)
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("loss", LOSSES)
def test_an_update_of_smollm2_is_that_of_a_plain_loop(
    smollm2_places, tmp_path, figure, loss, trained, preset, divergence
):
    place, optimiser = smollm2_places[trained], REAL[preset, divergence]
    job = place.job(loss, preset, divergence, optimiser)
    if loss == "f_hal":
        job["overrides"].append(f"data.preference.batch_size={2 * len(PAIRS)}")
    # A gigabyte each, which is not kept.
    with TemporaryDirectory(dir=tmp_path) as results:
        ((update,),) = run_jobs([job], Path(results)).values()
    ratio = _check(place, update, loss, preset, divergence, optimiser)
    figure(f"plain loop, SmolLM2, {trained}, {preset} {divergence}", loss, ratio)
