"""What the quick start's command line can set, and what it refuses before anything is written."""

import json
from dataclasses import dataclass
from pathlib import Path

from fgrpo_plugin.divergences import available_divergences
from fgrpo_plugin.host.settings.inputs import check_model, load_tokenizer

ALGORITHMS = ("f_grpo", "f_hal", "grpo")
DEFAULT_STEPS, HYBRID_STEPS = 50, 90
DIVERGENCES = {"f_grpo": "pearson", "f_hal": "kl"}
MAX_STEPS = 100_000
PACKAGED_SEED = 0
"""Whose warmed-up model on the addition task comes with the package (`warm_model.py`)."""


class QuickstartError(ValueError):
    """The run cannot start or has failed; the text is one sentence that names the option and the remedy."""


@dataclass(frozen=True)
class QuickstartOptions:
    """What the command line can set."""

    algo: str = "f_grpo"
    divergence: str | None = None
    """Name of f; None takes pearson, and on the hybrid task of f_hal kl."""
    lam: float | None = None
    seed: int = 0
    steps: int | None = None
    run_dir: Path | None = None
    data: Path | None = None
    model: Path | None = None
    learning_rate: float | None = None
    warm_up: bool = False
    """Make the warmed-up model anew where it comes with the package."""
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot work, before anything is written.

        Raises:
            QuickstartError: names the option and the remedy.
        """
        if self.algo not in ALGORITHMS:
            raise QuickstartError(f"ALGO={self.algo} is not known; choose one of {', '.join(ALGORITHMS)}.")
        if self.algo == "grpo" and self.divergence is not None:
            raise QuickstartError(f"DIVERGENCE={self.divergence} means nothing to ALGO=grpo; remove one of the two.")
        if self.lam is not None and self.algo != "f_hal":
            raise QuickstartError(f"LAM={self.lam} is lambda of f-HAL; set ALGO=f_hal, or remove it.")
        if self.lam is not None and not 0 <= self.lam <= 1:
            raise QuickstartError(f"LAM={self.lam} must lie in [0, 1]; 0 is f-GRPO, 1 uses preference data alone.")
        if self.algo == "f_hal" and self.data is not None:
            raise QuickstartError(
                f"DATA={self.data} with ALGO=f_hal: the quick start has preferences for its own task alone; with data "
                "of your own use verl.trainer.main_ppo and data.preference.files."
            )
        if self.divergence == "alpha":
            raise QuickstartError(
                "DIVERGENCE=alpha needs its order, for which the quick start has no option; use verl.trainer.main_ppo "
                "with policy_loss.f_divergence.alpha."
            )
        names = [name for name in available_divergences() if name != "alpha"]
        if self.divergence is not None and self.divergence not in names:
            raise QuickstartError(f"DIVERGENCE={self.divergence} is not known; choose one of {', '.join(names)}.")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise QuickstartError(f"STEPS={self.steps} must lie between 1 and {MAX_STEPS}.")
        if self.learning_rate is not None and not 0 <= self.learning_rate < 1:
            raise QuickstartError(f"--learning-rate={self.learning_rate} must lie in [0, 1).")
        if self.warm_up and self.model is not None:
            raise QuickstartError(f"--warm-up with MODEL={self.model}: a model of yours is not warmed up; remove one.")
        if self.seed < 0:
            raise QuickstartError(f"SEED={self.seed} must be 0 or more.")
        if self.run_dir is not None and self.run_dir.exists():
            if not self.run_dir.is_dir():
                raise QuickstartError(f"RUN={self.run_dir} is a file; name a new folder.")
            if any(self.run_dir.iterdir()):
                raise QuickstartError(f"RUN={self.run_dir} is not empty; name a new folder or remove this one.")
        if self.model is not None:
            try:
                check_model(str(self.model.absolute()), "MODEL")
                load_tokenizer(self.model, "MODEL")
            except ValueError as error:
                raise QuickstartError(str(error)) from None


def comes_with_the_package(options: QuickstartOptions) -> bool:
    """Return whether the model that the run begins with is the one that the package has, if its warm-up is this code's.

    The hybrid task's differs: its wrong labels are bluffs at times, and its warm-up stops earlier.
    """
    own = options.model is None and options.data is None and not options.warm_up
    return own and options.algo != "f_hal" and options.seed == PACKAGED_SEED


def is_users_own(model: Path | None) -> bool:
    """Return whether it is another model than the quick start's own from an earlier run."""
    return model is not None and "fgrpo_quickstart" not in json.loads((model / "config.json").read_text())
