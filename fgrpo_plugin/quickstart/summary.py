"""From verl's metrics (one JSON line a step) to the numbers and the picture of a run."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo_plugin.foreign_text import picture_text

REWARD = "critic/score/mean"
WINDOW = 10


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of verl's file log: ``{"step": int, "data": {metric: number}}``."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def rewards(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean sampled reward of each training step."""
    return [row["data"][REWARD] for row in rows if REWARD in row["data"]]


def heldout_accuracies(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, accuracy) of each validation: verl's ``val-core`` metrics, averaged over data sources."""
    return _validations(rows, "val-core/", "mean@1")


def heldout_true_rewards(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, mean of the judge's reward) of each validation, where the reward function reports one beside the proxy."""
    return _validations(rows, "val-aux/", "/true_reward/mean@1")


def _validations(rows: Sequence[Mapping[str, Any]], prefix: str, part: str) -> list[tuple[int, float]]:
    found = []
    for row in rows:
        values = [value for name, value in row["data"].items() if name.startswith(prefix) and part in name]
        if values:
            found.append((row["step"], statistics.fmean(values)))
    return found


def summarize(
    metrics: Path, *, algorithm: str, divergence: str | None, seed: int, steps: int, seconds_total: float
) -> dict[str, Any]:
    """The contents of ``summary.json``.

    Args:
        metrics: verl's file log.
        algorithm: ``f_grpo``, ``f_hal`` or ``grpo``.
        divergence: name of f, or None.
        seed: seed of the run.
        steps: training steps asked for.
        seconds_total: from the command to its end.

    Returns:
        A dict with rewards as means over the first and last ten steps (None where nothing is rolled out), held-out
        accuracy before and after, and on the hybrid task the judge's reward before and after.
    """
    rows = read_metrics(metrics)
    reward = rewards(rows)
    heldout, judged = heldout_accuracies(rows), heldout_true_rewards(rows)
    seconds = [row["data"]["timing_s/step"] for row in rows if "timing_s/step" in row["data"]]
    return {
        "algorithm": algorithm,
        "divergence": divergence,
        "seed": seed,
        "reward_first10": statistics.fmean(reward[:WINDOW]) if reward else None,
        "reward_last10": statistics.fmean(reward[-WINDOW:]) if reward else None,
        "heldout_accuracy_before": heldout[0][1] if heldout else None,
        "heldout_accuracy_after": heldout[-1][1] if heldout else None,
        **({"true_reward_before": judged[0][1], "true_reward_after": judged[-1][1]} if judged else {}),
        "steps": steps,
        "seconds_total": round(seconds_total, 1),
        "seconds_per_step_median": round(statistics.median(seconds), 3),
    }


def draw(
    runs: Mapping[str, Sequence[Sequence[float]]],
    target: Path,
    title: str,
    heldout: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Path:
    """Reward against step: each run faint, the mean over a name's runs, smoothed over ten steps, in full colour.

    Args:
        runs: name -> one list of rewards, step by step, for each seed.
        target: the PNG.
        title: above the picture.
        heldout: name -> (step, value) points of the validations.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    for index, (name, curves) in enumerate(runs.items()):
        colour = f"C{index}"
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.25, linewidth=0.8)
        mean = [statistics.fmean(values) for values in zip(*curves, strict=False)]
        smooth = [statistics.fmean(mean[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(mean))]
        axes.plot(range(1, len(smooth) + 1), smooth, color=colour, linewidth=2, label=picture_text(name))
    for marker, (name, points) in zip("osD^", (heldout or {}).items(), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), marker, color="grey", markersize=4, label=picture_text(name))
    axes.set(xlabel="training step", ylabel="sampled reward", ylim=(0, 1.02), title=picture_text(title))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(target)
    plt.close(figure)
    return target
