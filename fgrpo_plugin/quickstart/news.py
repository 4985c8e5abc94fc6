"""What a run says of itself, by verl's log, metrics and checkpoints: a plain line each without a terminal."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fgrpo_plugin.progress import duration
from fgrpo_plugin.quickstart.summary import REWARD, heldout_accuracies, heldout_true_rewards, read_metrics

STEPS_A_LINE, FEW_STEPS = 10, 30
"""Each tenth step has a line; each one where there are few, which then take long."""

STAGES = (  # what the pinned verl and Ray write (Ray's workers with a prefix) -> what it means; in order
    ("ray init kwargs:", "starting Ray"),
    ("Started a local Ray instance", "Ray started; the workers load verl"),
    ("(TaskRunner", "verl's task runner has started; the actor loads its model"),
    ("After FSDP, memory allocated", "the actor is ready; vLLM starts"),
    ("Creating file logger at", "workers ready; vLLM samples its first responses"),
    ("Training Progress:", "first rollout"),
)


FULL_MEMORY = "killed due to memory pressure"
"""What Ray writes when it has ended workers; a run of verl's own trainer then waits for them for ever."""


class HostNews:
    """What verl has done since it was last asked."""

    def __init__(self, metrics: Path, log: Path, checkpoints: Path, steps: int, clock: Callable[[], float]) -> None:
        self.metrics, self.log, self.steps, self.clock = metrics, log, steps, clock
        self.written = checkpoints / "latest_checkpointed_iteration.txt"
        self.rows: list[dict[str, Any]] = []
        self.stage, self.read, self.saved = 0, 0, ""
        self.first: tuple[int, float] | None = None
        self.every = STEPS_A_LINE if steps > FEW_STEPS else 1
        self.at = 0.0
        self.out_of_memory = False

    def lines(self) -> list[str]:
        """A line for each stage, validation and checkpoint that is new, the first, each tenth and the last step."""
        said = self._stages()
        rows = read_metrics(self.metrics)
        for row in rows[len(self.rows) :]:
            said += self._of_row(row)
        self.rows = rows
        saved = self.written.read_text().strip() if self.written.is_file() else ""
        if saved and saved != self.saved:
            said.append(f"checkpoint of step {saved} written to {self.written.parent}")
            self.saved = saved
        return said

    def _stages(self) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(self.read)
            new = log.read()
        self.read += new.rfind(b"\n") + 1  # a progress bar ends its line at last; until then it is read again
        text = new.decode(errors="replace")
        self.out_of_memory = self.out_of_memory or FULL_MEMORY in text
        said = []
        while self.stage < len(STAGES):
            found = [n for n in range(self.stage, len(STAGES)) if STAGES[n][0] in text]
            if not found:
                break
            said.append(STAGES[found[0]][1])
            self.stage = found[0] + 1
        return said

    def _of_row(self, row: Mapping[str, Any]) -> list[str]:
        step, said, now = row["step"], [], self.clock()
        if REWARD in row["data"]:
            self.first, self.at = self.first or (step, now), now
            if step == self.first[0] or step % self.every == 0 or step == self.steps:
                said.append(f"step {step} of {self.steps}: reward {row['data'][REWARD]:.2f}{self._left(step, now)}")
        elif step and (step % self.every == 0 or step == self.steps):
            said.append(f"step {step} of {self.steps}")
        judged = heldout_true_rewards([row])
        name = "proxy" if judged else "accuracy"
        said += [f"held-out {name} at step {step}: {value:.3f}" for _, value in heldout_accuracies([row])]
        said += [f"held-out true reward at step {step}: {value:.3f}" for _, value in judged]
        return said

    def under_way(self) -> str | None:
        """The step that was made last, and how long the others take; None before the first."""
        step = self.rows[-1]["step"] if self.rows else 0
        return f"step {step} of {self.steps}{self._left(step, self.at)}" if step > 0 else None

    def _left(self, step: int, now: float) -> str:
        if self.first is None:
            return ""
        first, since = self.first
        if step in (first, self.steps):
            return ""
        return f", about {duration((now - since) / (step - first) * (self.steps - step))} left"
