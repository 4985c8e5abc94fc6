"""Make docs/concepts.md and its figures from the code:  python docs/make/concepts.py"""

import re
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.divergences import Divergence, get_divergence
from fgrpo_plugin.losses import f_grpo_loss, f_hal_loss, fdo_loss

DOCS = Path(__file__).parents[1]
BETA = 0.1
# Response -> reward, tokens, log pi and log pi_ref of the whole response.
GROUP = {
    "A": (1.0, 20, -18.0, -22.0),
    "B": (0.5, 10, -12.0, -11.0),
    "C": (0.0, 25, -20.0, -25.0),
    "D": (0.0, 10, -15.0, -9.0),
}
PAIR = (3.0, -2.0)
"""log(pi/pi_ref) of the chosen and of the rejected response."""
SHOWN = ("pearson", "kl", "reverse_kl", "jensen_shannon")
CLIP = 0.2
"""verl's default of clip_ratio."""


def pulls(r: torch.Tensor, good: torch.Tensor, bad: torch.Tensor, d: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and -dL/dr of the group."""
    r = r.clone().requires_grad_()
    loss = f_grpo_loss(r, good, d, bad)
    return loss.detach(), -torch.autograd.grad(loss, r)[0]


def example() -> dict[str, Any]:
    """Every number of the example, under the name that the page has for it."""
    reward, tokens, policy, reference = torch.tensor(list(GROUP.values()), dtype=torch.float64).T
    ids = ["prompt"] * len(reward)
    advantage = group_advantages(reward, ids)
    weight = group_weights(
        reward, ids, "softmax_is", (policy / tokens).unsqueeze(-1), torch.ones(len(reward), 1)
    )  # one token a response, whose log-prob is the mean of its tokens'
    r = BETA * (policy - reference)
    d = get_divergence("pearson")
    loss, pull = pulls(r, advantage, weight, d)
    _, smooth = pulls(r, advantage, weight, get_divergence("jensen_shannon"))
    positive = advantage > 0
    terms = torch.where(positive, d.link(r), d.conjugate_of_link(r))
    sides = [(weight * terms)[side].sum() / weight[side].sum() for side in (positive, ~positive)]

    pair = BETA * torch.tensor(PAIR, dtype=torch.float64)
    on = r.clone().requires_grad_()
    off = pair.clone().requires_grad_()
    labels = torch.tensor([True, False])
    both = f_hal_loss(fdo_loss(off, labels, d), f_grpo_loss(on, advantage, d, weight), 0.5)
    halves = [slope.abs().sum().item() for slope in torch.autograd.grad(both, (on, off))]
    slopes = pull.abs() * len(reward) / (advantage.abs() * weight)
    return {
        "reward": reward, "tokens": tokens, "policy": policy, "reference": reference, "advantage": advantage,
        "weight": weight, "r": r, "slope": slopes, "pull": pull, "grpo": advantage / len(reward), "smooth": smooth,
        "mean": reward.mean().item(), "std": reward.std().item(), "loss": loss.item(),
        "estimate": (sides[0] - sides[1]).item(), "on": halves[0], "off": halves[1],
        "share": halves[0] / sum(halves), "chosen": pair[0].item(), "rejected": pair[1].item(),
        "chosen_loss": -d.link(pair[0]).item(), "rejected_loss": d.conjugate_of_link(pair[1]).item(),
    }  # fmt: skip


def table(head: str, rows: list[list[str]]) -> str:
    """Markdown."""
    cells = head.split(", ")
    return "\n".join("| " + " | ".join(row) + " |" for row in (cells, ["---"] * len(cells), *rows))


def page() -> str:
    """The text of docs/concepts.md."""
    found = example()
    given, result = [], []
    for i, name in enumerate(GROUP):
        at = {key: value[i].item() for key, value in found.items() if isinstance(value, torch.Tensor)}
        given.append([name, f"{at['reward']:g}", f"{at['tokens']:g}", f"{at['policy']:g}", f"{at['reference']:g}"])
        exact = [f"{at[key]:.3f}" for key in ("advantage", "weight", "r", "slope")]
        result.append([name, *exact, *(f"{at[key]:+.3f}" for key in ("pull", "grpo", "smooth"))])
    numbers = {
        **{key: f"{value:.3f}" for key, value in found.items() if isinstance(value, float)},
        "beta": f"{BETA:g}",
        "chosen": f"{found['chosen']:g}",
        "rejected": f"{found['rejected']:g}",
        "up": f"{PAIR[0]:g}",
        "down": f"{-PAIR[1]:g}",
        "group": table("response, R, tokens, log pi, log pi_ref", given),
        "result": table("response, a, w, r, slope, pull, GRPO's, jensen_shannon's", result),
    }
    template = (DOCS / "make" / "concepts.template.md").read_text()
    return re.sub(r"@(\w+)@", lambda name: numbers[name[1]], template)


def weights(d: Divergence, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """g'(r) and (f*.g)'(r)."""
    r = r.double().requires_grad_()
    good, bad = (torch.autograd.grad(function(r).sum(), r)[0] for function in (d.link, d.conjugate_of_link))
    return good, bad


def clipped_pulls(log_ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How hard PPO pulls a token of advantage 1 up, and one of advantage -1 down: the slope of its clipped objective."""
    found = []
    for advantage in (1.0, -1.0):
        x = log_ratio.double().requires_grad_()
        ratio = x.exp()
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        found.append(torch.autograd.grad(objective.sum(), x)[0] * advantage)
    return found[0], found[1]


def _draw_pulls(plt: Any, file: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), dpi=90, sharey=True)
    r = torch.linspace(-4, 4, 401)
    for name, style in zip(SHOWN, ("-", "--", "-.", ":"), strict=True):
        for panel, values in zip(axes, weights(get_divergence(name), r), strict=False):
            panel.plot(r, values, style, linewidth=1.8, label=name)
    log_ratio = torch.linspace(-1, 1, 801)
    for values, color, label in zip(
        clipped_pulls(log_ratio), ("tab:blue", "tab:red"), ("a > 0: up", "a < 0: down"), strict=True
    ):
        axes[2].plot(log_ratio, values, color=color, linewidth=1.8, label=label)
    titles = ("positive side: pull up", "negative side: pull down", f"PPO, clip_ratio {CLIP:g}, a = 1 or -1")
    labels = ("implicit reward r", "implicit reward r", "log(pi/pi_old) of a token")
    for panel, title, label in zip(axes, titles, labels, strict=True):
        panel.axhline(1, color="0.7", linewidth=5, alpha=0.5, zorder=0, label="GRPO, fresh rollouts")
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.axvline(0, color="0.6", linewidth=0.8)
        panel.set(ylim=(-1.1, 3), xlabel=label, title=title)
        panel.legend(fontsize=7, loc="upper right" if panel is axes[0] else "lower right")
    axes[0].set_ylabel("pull for advantage 1, weight 1")
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None}, facecolor="white")
    plt.close(figure)


BOXES = {
    # name: left, bottom, width, height, whose, text
    "rollouts": (
        0.1,
        3.1,
        2.2,
        1.5,
        "verl",
        "rollout engine\n\nn responses to each\nprompt: a group;\ntheir log-probs",
    ),
    "rewards": (2.9, 3.1, 2.0, 1.5, "verl", "rewards\n\na function or\na reward model:\none R a response"),
    "reference": (2.9, 0.9, 2.0, 1.5, "verl", "reference policy\n\nlog pi_ref of\neach token"),
    "driver": (5.5, 3.1, 2.5, 1.5, "ours", "driver\n\nadvantage, weight and\ndenominator: three\nnumbers a response"),
    "workers": (
        8.7,
        2.1,
        2.2,
        1.9,
        "ours",
        "workers\n\nlog pi, r, loss\nof each micro-batch;\nverl's gradient and\noptimiser step",
    ),
    "preferences": (
        5.5,
        0.9,
        2.5,
        1.5,
        "f-HAL",
        "preference rows\n\ndrawn from files, with\nlog pi_ref from a cache;\nas many of each side",
    ),
}
COLORS = {"verl": "#e8e8e8", "ours": "#cfe2f3", "f-HAL": "#fce5cd"}


def _draw_step(plt: Any, file: Path) -> None:
    figure, axes = plt.subplots(figsize=(11, 5), dpi=90)
    for left, bottom, width, height, whose, text in BOXES.values():
        axes.add_patch(plt.Rectangle((left, bottom), width, height, facecolor=COLORS[whose], edgecolor="0.3"))
        head, _, rest = text.partition("\n\n")
        middle = left + width / 2
        axes.text(middle, bottom + height - 0.12, head, ha="center", va="top", fontsize=10, weight="bold")
        axes.text(middle, bottom + height - 0.48, rest, ha="center", va="top", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float], **kwargs: Any) -> None:
        shape = {"arrowstyle": "-|>", "color": "0.2", "linewidth": 1.4} | kwargs
        axes.annotate("", xy=end, xytext=start, arrowprops=shape)

    arrow((2.3, 3.85), (2.9, 3.85))
    arrow((4.9, 3.85), (5.5, 3.85))
    arrow((8.0, 3.85), (8.7, 3.55))
    arrow((8.0, 1.65), (8.7, 2.55))
    arrow((1.2, 3.1), (2.9, 1.65))
    arrow((4.9, 1.65), (5.5, 1.65), linestyle="--")
    arrow((4.9, 2.36), (8.7, 3.1))
    axes.plot([9.8, 9.8, 1.2], [4.0, 4.95, 4.95], color="0.2", linewidth=1.4)
    arrow((1.2, 4.95), (1.2, 4.6))
    axes.text(5.5, 5.0, "the new weights go to the rollout engine", ha="center", va="bottom", fontsize=9)
    for place, (whose, label) in enumerate(
        {"verl": "verl", "ours": "this package, in verl's driver and workers", "f-HAL": "f-HAL alone"}.items()
    ):
        axes.add_patch(plt.Rectangle((0.1 + 3.6 * place, 0.15), 0.3, 0.3, facecolor=COLORS[whose], edgecolor="0.3"))
        axes.text(0.5 + 3.6 * place, 0.3, label, va="center", fontsize=9)
    axes.set(xlim=(0, 11), ylim=(0, 5.4))
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None}, facecolor="white")
    plt.close(figure)


def draw(folder: Path) -> None:
    """The pulls, and one step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _draw_pulls(plt, folder / "concepts_pull.png")
    _draw_step(plt, folder / "concepts_step.png")


if __name__ == "__main__":
    (DOCS / "concepts.md").write_text(page())
    draw(DOCS / "figures")
