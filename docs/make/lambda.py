"""Make docs/lambda.md, what lambda means under each preset:  python docs/make/lambda.py"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.config import PRESETS, FDivergenceConfig
from fgrpo_plugin.losses import f_grpo_loss, f_hal_loss, fdo_loss, implicit_reward

DOCS = Path(__file__).parents[1]
BETA = 0.1
SIZES = (2, 4, 8, 16)
SPREADS = (0.0, 1.0, 10.0)  # standard deviation of the log pi_old of a response, nats
TOKENS = 100  # of a response: `token_mean` divides its log pi_old by it
REWARDS: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "0 or 1, half of them 1": lambda n, draw: (torch.rand(n, generator=draw) < 0.5).double(),
    "0 or 1, one in ten 1": lambda n, draw: (torch.rand(n, generator=draw) < 0.1).double(),
    "uniform in [0, 1]": lambda n, draw: torch.rand(n, generator=draw, dtype=torch.float64),
    "normal, standard deviation 1": lambda n, draw: torch.randn(n, generator=draw, dtype=torch.float64),
    "normal, standard deviation 10": lambda n, draw: 10 * torch.randn(n, generator=draw, dtype=torch.float64),
}
BINARY = next(iter(REWARDS))

PAGE = """# What lambda means

Made by `python docs/make/lambda.py`. verl's actor minimises

    s_all * ( lambda * L_FDO + (1 - lambda) * s_on * L_fGRPO )

and the scales depend on the [preset](assumptions.md#presets), so the same lambda is another experiment under another preset.

## Nominal coefficients

lambda = 0.5, beta = {beta:g}, preference rows with `preference_gamma` = 0. The coefficients of both losses are what the validation
prints before a run starts. The last column also has dr/d log pi in it: beta + gamma for on-policy rows, beta for preference rows.

{nominal}

Under `released` the on-policy half is not scaled: its factor of {factor:g} comes from gamma. Wherever pi_old is the policy itself (one
optimiser step on fresh rollouts, as in every recipe but `async_7b`) `paper` and `released` have the same gradient, at any r
(checked, relative difference {same_gradient}).

The coefficients are nominal: slopes of the link, advantages and group weights are not in them, and the weights of `paper` and
`released` add up to less than those of `stable`.

## The balance at the start

Measure a half by its sum of |dL/dr| over responses. At r = 0, with slopes of 1 (pearson; the others: [divergences.md](divergences.md)),
that is 1 + 1 = 2 for L_FDO and m = mean(|a| w) for L_fGRPO (slopes of 1/2 on both sides, as of jensen_shannon, halve both). With
scales and dr/d log pi, on-policy against preference half:

    stable, lambda l':           (1 - l') m_side : 2 l'
    paper, released, lambda l:   (1 + 1/beta) (1 - l) m_group : 2 l
    equal if                     (1 - l') / l' = q (1 + 1/beta) (1 - l) / l,       q = m_group / m_side

q for groups of G responses, log pi_old independent of the rewards, {rows:,} random responses for each number. Three numbers a cell: log pi_old
is the same for all responses (so also `weighting=softmax`); the log pi_old of a response of {tokens} tokens has a standard deviation of 1 nat;
of 10 nats (`weight_level=sequence` in m_group, `token_mean` in m_side). In brackets m_side, which falls as groups become flat.
Standard errors of q are at most {error:.3f}. A success rate of 0.9 gives the numbers of 0.1.

{q}

From G = 4 on, in this table, q lies between {low:.1f}/G and {high:.1f}/G: the more responses a prompt, the less is left of the factor 1 + 1/beta.
q is 1 where the weights are the same: `weighting=none`, or the same `weight_scale` and `weight_level`.

The lambda of `stable` whose balance is that with which `paper` and `released` start (beta = {beta:g}; rewards {binary};
log pi_old the same, or spread by 10 nats):

{equal}

* **It holds at the start only, unless q is 1.** q follows the groups' rewards and log pi_old, which change in training, and rows that
  have moved have other slopes. It is a balance of the two halves and no more: weights inside a group differ too.
* **With q = 1 it holds at every step**: the gradient of `paper` at l is beta l/l' times that of `stable` at l' (checked at any r, relative
  difference {same_direction}), a constant that Adam hardly notices and `clip_grad` does.
* **Sizes**, at the same lambda: the on-policy gradient of `paper` and `released` is (1 + beta) q times that of `stable`, {small:.2f} to {large:.2f} for
  G = 4 in this table; the preference gradient is beta times, {beta:g}.

## Choosing lambda

Coefficients do not say how hard each half pulls; `actor/f_divergence/on_policy_slope_share` does ([metrics.md](metrics.md)): the on-policy
share of the sum of |dL/dr| (beta + gamma), as it enters the minimised loss. Read it in the first steps. If it is s at lambda l and
you want t, take

    (1 - l') / l' = (1 - l) / l * [t / (1 - t)] / [s / (1 - s)]

This is exact for the policy on which s was measured; from l = 0.5, l' = s makes the halves equal. Checked by automatic
differentiation of the package's losses (pearson, G = 4, rewards {binary}, 10 nats). "Moved": D+ rows 10 nats above the
reference, D- rows 10 nats below, on-policy rows spread by 5 nats.

{solved}

The share compares sizes, not directions: it does not say whether the halves agree, and the length of responses is not in it. It drifts
as training goes on; a schedule of lambda ([f_hal.md](f_hal.md#lambda)) can follow. Which share is best is another matter: one task was
measured, in [experiments/lambda_lab](../experiments/lambda_lab/README.md).
"""


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _settings(preset: str, **overrides: Any) -> FDivergenceConfig:
    return FDivergenceConfig(preset=preset, beta=BETA, **overrides)


def nominal() -> str:
    """Coefficients of both halves, without and with dr/d log pi."""
    rows = []
    for preset in PRESETS:
        settings = _settings(preset)
        s_all, s_on = settings.scales()
        assert settings.gamma is not None
        halves = 0.5 * s_all * s_on, 0.5 * s_all
        pulls = halves[0] * (BETA + settings.gamma), halves[1] * BETA
        rows.append(
            [f"`{preset}`"]
            + [f"{value:g}" for value in (settings.gamma, s_all, s_on, *halves)]
            + [f"{halves[0] / halves[1]:g} to 1", f"{pulls[0] / pulls[1]:g} to 1"]
        )
    head = ["preset", "gamma", "s_all", "s_on", "on-policy loss", "preference loss", "coefficients", "with dr/d log pi"]
    return _table(head, rows)


def balance(rewards: str, size: int, spread: float, rows: int) -> tuple[float, float, float]:
    """m_side, q = m_group / m_side and the standard error of q, over groups of `size` random responses."""
    draw = torch.Generator().manual_seed(0)
    groups = rows // size
    reward = REWARDS[rewards](groups * size, draw)
    old_log_prob = spread * torch.randn(groups * size, 1, generator=draw, dtype=torch.float64)
    ids = torch.arange(groups * size) // size
    size_of_advantage = group_advantages(reward, ids).abs()

    def mass(preset: str) -> torch.Tensor:
        return (
            (size_of_advantage * _weights(_settings(preset), reward, ids, old_log_prob)).reshape(groups, size).mean(-1)
        )

    of_group, of_side = mass("paper"), mass("stable")
    q = of_group.mean() / of_side.mean()
    error = (of_group - q * of_side).std() / of_side.mean() / groups**0.5
    return of_side.mean().item(), q.item(), error.item()


def _weights(
    settings: FDivergenceConfig, reward: torch.Tensor, ids: torch.Tensor, old_log_prob: torch.Tensor
) -> torch.Tensor:
    """Group weights; `old_log_prob` (n, 1) is that of whole responses of `TOKENS` tokens."""
    level, scale = settings.weight_level, settings.weight_scale
    assert level is not None and scale is not None
    return group_weights(
        reward,
        ids,
        settings.weighting,
        old_log_prob / TOKENS if level == "token_mean" else old_log_prob,
        torch.ones_like(old_log_prob),
        old_log_prob_level=level,
        weight_scale=scale,
    )


def same_balance(lam: float, q: float) -> float:
    """The lambda of `stable` whose halves are balanced as those of `paper` at `lam`."""
    odds = q * (1 + 1 / BETA) * (1 - lam) / lam
    return 1 / (1 + odds)


def solved_lam(lam: float, share: float, target: float) -> float:
    """The lambda that makes the on-policy share `target`, from the `share` measured at `lam`."""
    odds = (1 - lam) / lam * (target / (1 - target)) / (share / (1 - share))
    return 1 / (1 + odds)


def gradients(preset: str, lam: float, moved: bool, divergence: str = "pearson", **overrides: Any) -> torch.Tensor:
    """d loss / d log pi of 8,000 on-policy responses in groups of 4, then of 8,000 preference responses."""
    draw = torch.Generator().manual_seed(1)
    rows = 8_000
    settings = _settings(preset, divergence=divergence, **overrides)
    assert settings.gamma is not None
    link = settings.build_divergence()
    reward = REWARDS[BINARY](rows, draw)
    old_log_prob = SPREADS[-1] * torch.randn(rows, 1, generator=draw, dtype=torch.float64)
    desirable, ids, mask = torch.arange(rows) % 2 == 0, torch.arange(rows) // 4, torch.ones(rows, 1)
    on_policy = moved * 5 * torch.randn(rows, 1, generator=draw, dtype=torch.float64)
    preference = moved * 10 * torch.where(desirable, 1.0, -1.0).double().unsqueeze(-1)
    log_prob = torch.cat([on_policy, preference]).requires_grad_()
    reference = torch.zeros_like(on_policy)
    # pi_old is the policy itself: one optimiser step on fresh rollouts.
    r = implicit_reward(log_prob[:rows], reference, mask, BETA, old_log_prob=on_policy, gamma=settings.gamma)
    weights = _weights(settings, reward, ids, old_log_prob)
    l_f_grpo = f_grpo_loss(r, group_advantages(reward, ids), link, weights)
    l_fdo = fdo_loss(implicit_reward(log_prob[rows:], reference, mask, BETA), desirable, link)
    s_all, s_on = settings.scales()
    loss = s_all * f_hal_loss(l_fdo, s_on * l_f_grpo, lam)
    return torch.autograd.grad(loss, log_prob)[0].flatten()


def difference(one: torch.Tensor, other: torch.Tensor) -> str:
    """Of two gradients that should be the same, relative to the larger entries; "!" where they are not."""
    return "< 1e-9" if (one - other).abs().max() < 1e-9 * one.abs().max() else "!"


def share_of(preset: str, lam: float, moved: bool) -> float:
    """On-policy share of the sum of |d loss / d log pi|."""
    on, off = (half.abs().sum().item() for half in gradients(preset, lam, moved).chunk(2))
    return on / (on + off)


def solved(target: float = 0.8) -> str:
    """Shares measured at lambda = 0.5, the lambda for another share, and the share that comes out."""
    rows = []
    for preset in PRESETS:
        for label, moved in (("start", False), ("moved", True)):
            share = share_of(preset, 0.5, moved)
            lam = solved_lam(0.5, share, target)
            there = share_of(preset, lam, moved)
            reached = f"{there:.3f}" if abs(there - target) < 1e-9 else "!"
            rows.append([f"`{preset}`, {label}", f"{share:.3f}", f"{lam:.3f}", reached])
    return _table(["", "share at lambda 0.5", f"lambda for {target:g}", "share there"], rows)


def page(rows: int = 48_000) -> str:
    """The text of docs/lambda.md."""
    found = {
        (rewards, size, spread): balance(rewards, size, spread, rows)
        for rewards in REWARDS
        for size in SIZES
        for spread in SPREADS
    }
    q = {case: numbers[1] for case, numbers in found.items()}
    lines = [
        [rewards]
        + [
            ", ".join(f"{q[rewards, size, spread]:.2f}" for spread in SPREADS)
            + f" ({found[rewards, size, 0.0][0]:.2f})"
            for size in SIZES
        ]
        for rewards in REWARDS
    ]
    chosen = {"q = 1": 1.0}
    for spread, label in ((0.0, "same"), (10.0, "10 nats")):
        chosen |= {f"G = {size}, {label}": q[BINARY, size, spread] for size in SIZES[1:]}
    equal = [
        [f"{lam:g}", *(f"{same_balance(lam, value):.2f}" for value in chosen.values())]
        for lam in (0.25, 0.5, 0.75, 0.9)
    ]
    over_size = [value * size for (_, size, _), value in q.items() if size >= 4]
    of_four = [value for (_, size, _), value in q.items() if size == 4]
    other = same_balance(0.3, 1.0)
    as_paper = {"weight_scale": "group", "weight_level": "sequence"}
    return PAGE.format(
        beta=BETA,
        factor=1 + 1 / BETA,
        rows=rows,
        tokens=TOKENS,
        binary=BINARY,
        nominal=nominal(),
        same_gradient=difference(*(gradients(preset, 0.3, True, "kl") for preset in ("paper", "released"))),
        error=math.ceil(1000 * max(numbers[2] for numbers in found.values())) / 1000,
        q=_table(["rewards", *(f"G = {size}" for size in SIZES)], lines),
        low=math.floor(10 * min(over_size)) / 10,  # rounded outwards
        high=math.ceil(10 * max(over_size)) / 10,
        small=math.floor(100 * (1 + BETA) * min(of_four)) / 100,
        large=math.ceil(100 * (1 + BETA) * max(of_four)) / 100,
        equal=_table(["lambda of `paper`", *chosen], equal),
        same_direction=difference(
            gradients("paper", 0.3, True, "kl"),
            BETA * 0.3 / other * gradients("stable", other, True, "kl", **as_paper),
        ),
        solved=solved(),
    )


def draw(folder: Path) -> None:
    """The page has no picture."""


if __name__ == "__main__":
    (DOCS / "lambda.md").write_text(page())
