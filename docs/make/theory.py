"""Make docs/theory.md and its figure from `fgrpo_plugin.theory`:  python docs/make/theory.py"""

from collections.abc import Callable
from pathlib import Path

import torch

from fgrpo_plugin.divergences import Divergence, available_divergences, get_divergence
from fgrpo_plugin.theory import (
    alignment_sides,
    expected_reward,
    fit_policy,
    grpo_fixed_point,
    grpo_iterate,
    iterate,
    mass_below_mean,
    optimal_reward,
    population_f_grpo,
    population_fdo,
)

DOCS = Path(__file__).parents[1]
NAMES = ("kl", "reverse_kl", "pearson", "neyman", "squared_hellinger", "jensen_shannon", "total_variation")
EPS = (0.0, 1e-4, 1e-2, 0.1, 0.3)


def tables(prompts: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reference, start and rewards, (prompts, 6)."""
    draw = torch.Generator().manual_seed(seed)
    reference, start = (torch.rand(prompts, 6, generator=draw, dtype=torch.float64).square() + 0.01 for _ in range(2))
    rewards = 2 * torch.rand(prompts, 6, generator=draw, dtype=torch.float64)
    return reference / reference.sum(-1, keepdim=True), start / start.sum(-1, keepdim=True), rewards


def walk(step: Callable[[torch.Tensor], torch.Tensor], policy: torch.Tensor, steps: int = 100) -> torch.Tensor:
    """The policies along an iteration, (steps + 1, prompts, 6)."""
    path = [policy]
    for _ in range(steps):
        path.append(step(path[-1]))
    return torch.stack(path)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _small(value: float) -> str:
    return f"{value:.3f}" if value >= 1e-3 else "< 0.001"


def estimate() -> str:
    """Theorem 1."""
    reference, rewards = (t[0] for t in tables(1, seed=3)[::2])
    aligned, unaligned = alignment_sides(reference, rewards, eps=0.3)
    rows = []
    for name in NAMES:
        d = get_divergence(name)
        best = optimal_reward(aligned, unaligned, d).clamp(-20, 20)  # total_variation: tanh(20) is 1
        loss = population_fdo(best, aligned, unaligned, d)
        exact = d.exact(aligned, unaligned) - d.estimate_offset
        rows.append([name, f"{exact:.6f}", f"{loss:.6f}", "< 1e-9" if abs(loss + exact) < 1e-9 else "!"])
    return _table(["divergence", "D_f(D+ \\|\\| D-)", "L_FDO at r\\*", "difference"], rows)


def consistency() -> str:
    """Theorem 2: the minimiser over policies, with and without a free constant, against the iterate."""
    reference, rewards = (t[0] for t in tables(1, seed=3)[::2])
    mean = expected_reward(reference, rewards)
    aligned, unaligned = alignment_sides(reference, rewards, eps=0.3)

    def described(policy: torch.Tensor) -> list[str]:
        return [f"{expected_reward(policy, rewards):.3f}", f"{(policy * (rewards < mean)).sum():.3f}"]

    rows = []
    for name in NAMES[:-1]:
        d = get_divergence(name)
        target = iterate(reference, aligned, unaligned, d, beta=1.0)

        def loss(r: torch.Tensor, d: Divergence = d) -> torch.Tensor:
            return population_fdo(r, aligned, unaligned, d)

        free, bound = (fit_policy(reference, 1.0, loss, free_constant=free) for free in (True, False))
        apart = ["< 1e-5" if (free - target).abs().max() < 1e-5 else "!", f"{(bound - target).abs().max():.3f}"]
        rows.append([name, *apart, *described(target), *described(bound)])

    def donsker_varadhan(r: torch.Tensor) -> torch.Tensor:
        return -(aligned * r).sum() + (unaligned.log() + r).logsumexp(-1)

    target = iterate(reference, aligned, unaligned, get_divergence("kl", "density_ratio"), beta=1.0)
    bound = fit_policy(reference, 1.0, donsker_varadhan)
    rows.append(
        ["KLDO", "", "< 1e-5" if (bound - target).abs().max() < 1e-5 else "!", *described(target), *described(bound)]
    )
    head = [
        "",
        "free c: largest difference",
        "c = 0: largest difference",
        "E R, iterate",
        "below mean",
        "E R, c = 0",
        "below mean",
    ]
    return (
        _table(head, rows)
        + f"\n\n  (The reference has E R = {mean:.3f}, and {(reference * (rewards < mean)).sum():.3f} below it.)"
    )


def trained() -> str:
    """The minimisers of both losses over policies, disjoint sides, against the restriction."""
    reference, rewards = (t[0] for t in tables(1, seed=3)[::2])
    mean = expected_reward(reference, rewards)
    aligned, unaligned = alignment_sides(reference, rewards)
    order = rewards.argsort()

    def cells(policy: torch.Tensor) -> list[str]:
        return [*(f"{p:.3f}" for p in policy[order]), f"{(policy * (rewards < mean)).sum():.4f}"]

    rows = [["reference", "", *cells(reference)], ["D+", "", *cells(aligned)]]
    restricted = iterate(reference, aligned, unaligned, get_divergence("kl"), beta=1.0)
    rows.append(["iterate", "every", *cells(restricted)])
    for name in ("kl", "jensen_shannon", "pearson", "total_variation"):
        d = get_divergence(name)
        for beta in (0.1, 1.0):
            fdo = fit_policy(reference, beta, lambda r, d=d: population_fdo(r, aligned, unaligned, d))
            rows.append([f"L_FDO, {name}", f"{beta:g}", *cells(fdo)])
            f_grpo = fit_policy(reference, beta, lambda r, d=d: population_f_grpo(r, reference, rewards, d))
            rows.append([f"L_fGRPO, {name}", f"{beta:g}", *cells(f_grpo)])
    return _table(["", "beta", *(f"R = {reward:.2f}" for reward in rewards[order]), "below mean"], rows)


def disjoint() -> str:
    """D_f of disjoint sides by entry."""
    aligned, unaligned = torch.tensor([[0.4, 0.6, 0.0], [0.0, 0.0, 1.0]]).double()
    rows = []
    entries = [
        *((name, {}) for name in available_divergences() if name != "alpha"),
        *(("alpha", {"alpha": a}) for a in (-1.0, 0.2, 0.5, 3.0)),
    ]
    for name, parameters in entries:
        value = get_divergence(name, **parameters).exact(aligned, unaligned).item()
        label = name + "".join(f", a = {a:g}" for a in parameters.values())
        rows.append([label, f"{value:.4f}" if value < float("inf") else "infinite"])
    half = (len(rows) + 1) // 2
    paired = [left + right for left, right in zip(rows[:half], [*rows[half:], ["", ""]], strict=False)]
    return _table(["divergence", "of disjoint sides", "divergence", "of disjoint sides"], paired)


def counterexample() -> str:
    """Smoothed sides on which an iterate falls."""
    reference, rewards = torch.tensor([0.99, 0.01]).double(), torch.tensor([0.0, 1.0]).double()
    d, rows = get_divergence("kl", "density_ratio"), []
    for beta, eps in ((1.0, 0.5), (1.0, 0.0), (0.1, 0.5)):
        path = walk(lambda p, b=beta, e=eps: iterate(reference, *alignment_sides(p, rewards, e), d, b), reference, 5)
        rows.append([f"beta {beta:g}, eps {eps:g}", *(f"{mu:.3f}" for mu in expected_reward(path, rewards))])
    return _table(["", *(f"t = {t}" for t in range(6))], rows)


def observed() -> str:
    """Falls, and iterates below the reference, of smoothed sides that start from it."""
    draw = torch.Generator().manual_seed(1)
    prompts = []
    for responses in (2, 3, 6):
        one, two, rewards = (torch.rand(700, responses, generator=draw, dtype=torch.float64) for _ in range(3))
        reference = one * two**3 + 1e-4
        spread = 4 * torch.rand(700, 1, generator=draw, dtype=torch.float64)
        prompts.append((reference / reference.sum(-1, keepdim=True), spread * rewards))
    rows = []
    for name in NAMES:
        d, row = get_divergence(name), [name]
        for beta in (0.1, 1.0):
            for eps in (0.1, 0.3, 0.5, 0.9):
                falls = below = 0
                for reference, rewards in prompts:
                    path = walk(
                        lambda p, d=d, e=eps, b=beta, q=reference, r=rewards: iterate(
                            q, *alignment_sides(p, r, e), d, b
                        ),
                        reference,
                        steps=25,
                    )
                    mu = expected_reward(path, rewards)
                    falls += int((mu.diff(dim=0) < -1e-5).any(dim=0).sum())
                    below += int((mu[1:] < mu[0] - 1e-9).any(dim=0).sum())
                row.append(f"{falls}, {below}")
        rows.append(row)
    return _table(["", *(f"beta {beta}, eps {eps:g}" for beta in (0.1, 1) for eps in (0.1, 0.3, 0.5, 0.9))], rows)


def _falls(path: torch.Tensor, rewards: torch.Tensor) -> int:
    return int((expected_reward(path, rewards).diff(dim=0) < -1e-12).any(dim=0).sum())


def improvement() -> str:
    """Theorem 3: how many of the starts ever decrease."""
    reference, start, rewards = tables()
    rows = []
    for name in NAMES:
        d = get_divergence(name)
        row = [name]
        for beta in (0.1, 1.0):
            for eps in EPS:
                path = walk(
                    lambda p, d=d, e=eps, b=beta: iterate(reference, *alignment_sides(p, rewards, e), d, b), start
                )
                row.append(str(_falls(path, rewards)))
        rows.append(row)
    return _table(["", *(f"beta {beta}, eps {eps:g}" for beta in (0.1, 1) for eps in EPS)], rows)


def mixed() -> str:
    """Theorem 3 for f-HAL, and its control."""
    reference, start, rewards = tables()
    rows = []
    for name in NAMES:
        d = get_divergence(name)
        row = [name]
        for eps in (0.0, 1e-4, 1e-2):
            preferences = alignment_sides(reference, rewards, eps)

            def step(policy: torch.Tensor, d: Divergence = d, eps: float = eps, p: tuple = preferences) -> torch.Tensor:
                sides = alignment_sides(policy, rewards, eps)
                return iterate(reference, *(0.9 * a + 0.1 * b for a, b in zip(p, sides, strict=True)), d, 0.1)

            row.append(str(_falls(walk(step, start), rewards)))
        swapped = walk(lambda p, d=d: iterate(reference, *reversed(alignment_sides(p, rewards)), d, 0.1), start)
        lower = expected_reward(swapped[-1], rewards) < expected_reward(start, rewards)
        row.append(str(int(lower.sum())))
        rows.append(row)
    head = [
        "",
        *(f"mixed, eps {eps:g}: starts that ever fall" for eps in (0.0, 1e-4, 1e-2)),
        "swapped: starts that end lower",
    ]
    return _table(head, rows)


def grpo() -> str:
    """Theorem 4."""
    reference, start, rewards = tables()
    rows = []
    for label, settings in (("GRPO without std", {"normalize_by_std": False}), ("GRPO", {})):
        row = [label]
        for beta in (0.1, 0.5, 1.0, 2.0, 3.0):
            below = mass_below_mean(grpo_fixed_point(reference, start, rewards, beta, **settings), rewards)
            row.append(f"{_small(below.median().item())}; {int((below < 1e-12).sum())} of 50")
        rows.append(row)
    d = get_divergence("jensen_shannon")
    row = ["f-GRPO, jensen_shannon"]
    for beta in (0.1, 0.5, 1.0, 2.0, 3.0):
        policy = walk(lambda p, b=beta: iterate(reference, *alignment_sides(p, rewards), d, b), start)[-1]
        below = mass_below_mean(policy, rewards)
        row.append(f"{_small(below.median().item())}; {int((below < 1e-12).sum())} of 50")
    return _table(["", *(f"beta {beta:g}" for beta in (0.1, 0.5, 1.0, 2.0, 3.0))], [*rows, row])


def page() -> str:
    """The text of docs/theory.md."""
    return (
        (DOCS / "make" / "theory.template.md")
        .read_text()
        .format(
            estimate=estimate(),
            disjoint=disjoint(),
            counterexample=counterexample(),
            observed=observed(),
            consistency=consistency(),
            trained=trained(),
            improvement=improvement(),
            mixed=mixed(),
            grpo=grpo(),
        )
    )


def draw(folder: Path) -> None:
    """Reward and mass below the mean along the iteration, mean of 50 starts, beta = 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reference, start, rewards = tables()
    d = get_divergence("jensen_shannon")
    curves = {
        "f-GRPO, disjoint": lambda p: iterate(reference, *alignment_sides(p, rewards), d, 1.0),
        "f-GRPO, smoothed, eps 0.01": lambda p: iterate(reference, *alignment_sides(p, rewards, 0.01), d, 1.0),
        "GRPO": lambda p: grpo_iterate(reference, p, rewards, 1.0),
        "control: sides swapped": lambda p: iterate(reference, *reversed(alignment_sides(p, rewards)), d, 1.0),
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), dpi=90)
    for label, step in curves.items():
        path = walk(step, start, steps=20)
        left.plot(expected_reward(path, rewards).mean(-1), marker=".", label=label)
        right.plot(mass_below_mean(path, rewards).mean(-1), marker=".", label=label)
    left.set(xlabel="iteration", ylabel="expected reward", ylim=(0, 2))
    right.set(xlabel="iteration", ylabel="mass below the policy's own mean", ylim=(-0.02, 0.7))
    left.legend(fontsize=7)
    figure.suptitle("jensen_shannon, beta = 1, mean of 50 starts", fontsize=9)
    figure.tight_layout()
    figure.savefig(folder / "theory.png", metadata={"Software": None})


if __name__ == "__main__":
    (DOCS / "theory.md").write_text(page())
    draw(DOCS / "figures")
