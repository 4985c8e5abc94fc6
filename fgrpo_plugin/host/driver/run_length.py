"""Warns of steps and schedules that a run ends too early to reach."""

import math
from collections.abc import Mapping

from fgrpo_plugin.config import FDivergenceConfig


def unreached(steps_per_epoch: int, epochs: int, total_steps: int, settings: FDivergenceConfig) -> list[str]:
    """Return a sentence for each end that the run does not reach.

    Args:
        steps_per_epoch: training steps of one pass over the data.
        epochs: verl's `trainer.total_epochs`.
        total_steps: that verl plans; its learning rate's schedule runs over them, and ours unless it says otherwise.
        settings: for the schedule of lambda.
    """
    available = steps_per_epoch * epochs
    last = min(available, total_steps)
    said = []
    if 0 < available < total_steps:
        needed = math.ceil(total_steps / steps_per_epoch)
        said.append(
            f"the run ends after {available} steps (trainer.total_epochs={epochs} x {steps_per_epoch}), before "
            f"trainer.total_training_steps={total_steps}: no schedule reaches its end, and verl makes no last "
            f"validation and no last checkpoint; set trainer.total_epochs={needed}, or "
            f"trainer.total_training_steps={available}"
        )
    if isinstance(settings.lam, Mapping):
        end = _last_step(settings.lam, total_steps)
        if end > last:
            reached = settings.lam_at(max(last, 1), total_steps)
            said.append(f"lambda ends at {reached:.4g}: its schedule goes on to step {end}, and the run to step {last}")
    return said


def _last_step(schedule: Mapping, total_steps: int) -> int:
    """The step at which a schedule of lambda takes its last value."""
    if schedule["schedule"] == "step":
        return int(schedule["values"][-1][0])
    return int(schedule.get("steps") or total_steps)
