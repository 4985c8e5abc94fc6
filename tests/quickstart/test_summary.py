"""The numbers and the picture of a run."""

import statistics
from pathlib import Path

import pytest

from fgrpo_plugin.quickstart.summary import draw, heldout_accuracies, read_metrics, summarize
from tests.support.quickstart_rows import _jsonl


def _metrics(path: Path, reward: list[float]) -> Path:
    lines = [{"step": 0, "data": {"val-core/fgrpo/addition/acc/mean@1": 0.25}}]
    for step, value in enumerate(reward, start=1):
        lines.append({"step": step, "data": {"critic/score/mean": value, "timing_s/step": 1.0 + step / 100}})
    lines[-1]["data"]["val-core/fgrpo/addition/acc/mean@1"] = 0.75
    _jsonl(path, lines)
    with path.open("a") as file:
        file.write('{"step": 99, "da')  # a line that is just being written
    return path


def test_summary_is_the_means_over_the_first_and_last_ten_steps(tmp_path):
    reward = [i / 100 for i in range(30)]
    metrics = _metrics(tmp_path / "metrics.jsonl", reward)
    summary = summarize(metrics, algorithm="f_grpo", divergence="kl", seed=1, steps=30, seconds_total=12.34)
    assert summary["reward_first10"] == pytest.approx(statistics.fmean(reward[:10]))
    assert summary["reward_last10"] == pytest.approx(statistics.fmean(reward[-10:]))
    assert (summary["heldout_accuracy_before"], summary["heldout_accuracy_after"]) == (0.25, 0.75)
    assert heldout_accuracies(read_metrics(metrics)) == [(0, 0.25), (30, 0.75)]
    assert summary["seconds_per_step_median"] == pytest.approx(1.155)
    expected = {"algorithm", "divergence", "seed", "reward_first10", "reward_last10", "heldout_accuracy_before"}
    expected |= {"heldout_accuracy_after", "steps", "seconds_total", "seconds_per_step_median"}
    assert expected <= summary.keys()


def test_the_picture_is_a_png_that_changes_with_the_data(tmp_path):
    import matplotlib.image

    low = draw({"a": [[0.1] * 12, [0.2] * 11]}, tmp_path / "a.png", "run", {"held-out": [(0, 0.5)]})
    high = draw({"a": [[0.9] * 12]}, tmp_path / "b.png", "run")
    first, second = matplotlib.image.imread(low), matplotlib.image.imread(high)
    assert first.shape == second.shape and first.shape[0] > 400
    assert (first != second).any()
