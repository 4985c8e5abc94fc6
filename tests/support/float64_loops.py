"""The runs of `tests.support.trajectories` by plain torch in float64, without verl: by the definitions, by the package.

The definitions are those of tests/support/independent.py; the package's are its own functions on one padded batch, as a
user without verl calls them.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.losses import f_grpo_loss, f_hal_loss, fdo_loss, implicit_reward
from tests.support import independent
from tests.support.engine_jobs import OPTIMISERS, TEMPERATURE
from tests.support.trajectories import UPDATES, Run, engine_optimiser, rows, where

Measured = dict[str, float]
ByLoss = Callable[[Any, Run], Measured]
"""Adds an update's gradient to the parameters' `.grad`; gives the columns of the policy."""


def load(folder: Path) -> Any:
    """The model in float64 throughout: transformers' norms and rotary angles are float32 whatever the model's dtype."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_root_mean_square_norm, module)
        elif hasattr(module, "inv_freq"):
            module.forward = partial(_rotary_angles, model.config)
    return model


def _root_mean_square_norm(norm: Any, values: torch.Tensor) -> torch.Tensor:
    return norm.weight * values / (values.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def _rotary_angles(shape: Any, values: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    size = shape.hidden_size // shape.num_attention_heads
    frequencies = shape.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = (position_ids.unsqueeze(-1) * frequencies).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


def follow(folder: Path, run: Run, by: ByLoss, updates: int = UPDATES) -> list[Measured]:
    """The trajectory of a run from the model in a folder."""
    model = load(folder)
    trained = dict(model.named_parameters())
    start = {name: value.detach().clone() for name, value in trained.items()}
    settings = dict(OPTIMISERS[engine_optimiser(run, "cpu")])
    clip = settings.pop("clip_grad")
    optimiser = getattr(torch.optim, settings.pop("optimizer"))(trained.values(), **settings)
    found = []
    for _ in range(updates):
        optimiser.zero_grad()
        measured = by(model, run)
        measured["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(trained.values(), clip))
        optimiser.step()
        found.append(measured | where(trained, start))
    return found


class _Together:
    """Stands for a model in the definitions' loop: every row's logits from one padded pass, and one pass back."""

    def __init__(self, model: Any, some: Sequence[dict[str, Any]]):
        tokens = [torch.tensor(row["prompt"] + row["response"]) for row in some]
        logits = model(input_ids=pad_sequence(tokens, batch_first=True), use_cache=False).logits
        self.whole = {tuple(ids.tolist()): of_row[: len(ids)] for ids, of_row in zip(tokens, logits, strict=True)}
        self.cut = {ids: value.detach().requires_grad_() for ids, value in self.whole.items()}

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.cut[tuple(input_ids[0].tolist())].unsqueeze(0))

    def backward(self) -> None:
        pairs = [(self.whole[ids], value.grad) for ids, value in self.cut.items() if value.grad is not None]
        torch.autograd.backward(*map(list, zip(*pairs, strict=True)))


def by_definitions(model: Any, run: Run) -> Measured:
    """The definitions, with the model's passes over all rows at once: ten times as fast as `by_single_rows`."""
    together = _Together(model, [row for some in rows(run.loss) for row in some])
    found = by_single_rows(together, run)
    together.backward()
    return found


def by_single_rows(model: Any, run: Run) -> Measured:
    """The definitions, one response at a time."""
    on, off = rows(run.loss)
    references = [[torch.tensor(row["ref_log_prob"], dtype=torch.float64) for row in some] for some in (on, off)]
    loss = independent.Loss(run.divergence, independent.PRESETS[run.preset], run.lam, TEMPERATURE)
    update = independent.gradient(model, on, references[0], off, references[1], loss)
    mean = statistics.fmean
    found = {
        "loss": update.loss,
        "on_policy_loss": mean(abs(row.advantage) * row.weight * row.term for row in update.on_policy),
        "divergence_estimate": -sum(_weighed(side) for side in _sides(update.on_policy)),
        "implicit_reward_margin": _margin(update.on_policy),
        "reference_gap": mean(gap for row in update.on_policy for gap in row.gaps),
    }
    if off:
        found["preference_loss"] = sum(mean(row.term for row in side) for side in _sides(update.preferences))
        found["preference_implicit_reward_margin"] = _margin(update.preferences)
    return found


def _sides(some: Sequence[independent.Row]) -> tuple[list[independent.Row], list[independent.Row]]:
    return [row for row in some if row.advantage > 0], [row for row in some if row.advantage < 0]


def _weighed(side: Sequence[independent.Row]) -> float:
    return sum(row.weight * row.term for row in side) / sum(row.weight for row in side)


def _margin(some: Sequence[independent.Row]) -> float:
    above, below = (statistics.fmean(row.reward for row in side) for side in _sides(some))
    return above - below


def by_package(model: Any, run: Run, *, on_policy_factor: float = 1.0, beta_factor: float = 1.0) -> Measured:
    """The minimised loss and its halves alone.

    Args:
        model: in float64.
        run: which.
        on_policy_factor: plants a mistake: what the on-policy half is multiplied by.
        beta_factor: the same of beta in the implicit reward.
    """
    settings, (on, off) = run.settings, rows(run.loss)
    divergence, (s_all, s_on) = settings.build_divergence(), settings.scales()
    beta = settings.beta * beta_factor
    log_prob, mask, ref = _padded(model, on)
    rewards = torch.tensor([row["reward"] for row in on], dtype=torch.float64)
    groups = [row["group"] for row in on]
    old = pad_sequence([torch.tensor(row["old_log_prob"], dtype=torch.float64) for row in on], batch_first=True)
    weights = group_weights(
        rewards,
        groups,
        settings.weighting,
        old,
        mask,
        old_log_prob_level=settings.weight_level,
        weight_scale=settings.weight_scale,
    )
    r = implicit_reward(log_prob, ref, mask, beta, old_log_prob=log_prob.detach(), gamma=settings.gamma)
    halves = {"on_policy_loss": f_grpo_loss(r, group_advantages(rewards, groups), divergence, weights)}
    if off:
        log_prob, mask, ref = _padded(model, off)
        desirable = torch.tensor([row["desirable"] for row in off])
        halves["preference_loss"] = fdo_loss(implicit_reward(log_prob, ref, mask, beta), desirable, divergence)
    half = s_on * on_policy_factor * halves["on_policy_loss"]
    loss = s_all * f_hal_loss(halves.get("preference_loss", torch.zeros(())), half, run.lam)
    loss.backward()
    return {"loss": loss.item()} | {name: value.item() for name, value in halves.items()}


def _padded(model: Any, some: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log pi of each response's tokens, the mask and log pi_ref, (n, T). Padding is behind: nobody attends to it."""
    tokens = pad_sequence([torch.tensor(row["prompt"] + row["response"]) for row in some], batch_first=True)
    table = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits / TEMPERATURE, dim=-1)
    every = table[:, :-1].gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    parts = [values[len(row["prompt"]) - 1 :][: len(row["response"])] for row, values in zip(some, every, strict=True)]
    mask = pad_sequence([torch.ones(len(part)) for part in parts], batch_first=True)
    ref = pad_sequence([torch.tensor(row["ref_log_prob"], dtype=torch.float64) for row in some], batch_first=True)
    return pad_sequence(parts, batch_first=True), mask, ref
