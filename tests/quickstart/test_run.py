"""The table at the end of a quick start."""

import io

from rich.console import Console

from fgrpo_plugin.quickstart.run import _report


def test_the_table_shows_rewards_and_accuracies_and_what_was_not_measured(tmp_path):
    summary = {
        "algorithm": "f_hal", "divergence": "kl", "seed": 3, "steps": 40, "seconds_total": 123.4,
        "seconds_per_step_median": 2.354, "reward_first10": 0.25, "reward_last10": None,
        "heldout_accuracy_before": 0.5, "heldout_accuracy_after": 0.75,
        "true_reward_before": 0.125, "true_reward_after": 0.875,
    }  # fmt: skip
    said = io.StringIO()
    _report(summary, tmp_path, Console(file=said, width=120))
    text = said.getvalue()
    for words in (
        "f_hal kl seed 3",
        "0.250",
        "-",
        "held-out proxy, sampled",
        "0.750",
        "0.875",
        "40 steps in 123 s, 2.35",
    ):
        assert words in text
