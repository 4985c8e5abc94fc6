"""Says what a step's metrics show that needs a look."""

from collections.abc import Mapping
from typing import Any

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.contract import PREFIX
from fgrpo_plugin.host.driver.refills import RefillNews
from fgrpo_plugin.host.settings.reading import joins_preferences, may_be_stale

ROLLOUT_DIFFERENCE_WARNING = {"fresh": 0.01, "stale": 0.05}
"""Mean |p_actor - p_rollout| above which the rollouts are probably not from the weights that they should be from: those
of this step, or of one or a few steps before."""


class StepNews(RefillNews):
    """Mixed in front of a verl trainer, for the lines of a step."""

    config: Any
    global_steps: int
    _said_equal = _said_absent = False

    def _say_what_is_odd(self, metrics: Mapping[str, float]) -> None:
        """Print a warning where the rollouts disagree, and once a run where a step has no signal or lacks responses."""
        difference = metrics.get("training/rollout_probs_diff_mean", 0.0)
        if difference > ROLLOUT_DIFFERENCE_WARNING["stale" if may_be_stale(self.config) else "fresh"]:
            self._warn(
                f"mean |p_actor - p_rollout| is {difference:.2g}; the rollout engine may hold stale weights or another "
                "precision."
            )
        if metrics[PREFIX + "zero_advantage_share"] == 1 and not self._said_equal:
            self._said_equal = True
            half = "; the preference rows have theirs" if joins_preferences(self.config) else ""
            self._warn(
                "every group's rewards are all equal, so that no response has an advantage or a gradient of f-GRPO"
                f"{half}. The optimiser steps all the same, by its momentum and weight decay, as in verl. Said once; "
                "zero_advantage_share is 1 in each such step."
            )
        absent = metrics[PREFIX + "absent_share"]
        if absent > 0 and not self._said_absent:
            self._said_absent = True
            self._warn(
                f"{absent:.2%} of the responses that were asked for take no part: empty, or their generation failed "
                "(verl's log says why), or all of their tokens are masked. Said once; absent_share has each step's."
            )

    def _warn(self, line: str) -> None:
        say(f"fgrpo-plugin: WARNING: step {self.global_steps}: {line}")
