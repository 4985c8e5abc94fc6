"""What `fgrpo realmodel` can be told, and what it refuses before anything is fetched."""

import json
from dataclasses import dataclass
from pathlib import Path

from fgrpo_plugin.divergences import available_divergences
from fgrpo_plugin.host.settings.inputs import check_model, load_tokenizer

ARMS = {
    "grpo": ("algorithm.adv_estimator=grpo",),
    "grpo_kl": (
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.kl_loss_coef=0.001",
    ),
    "f_grpo": ("algorithm.adv_estimator=f_grpo",),
    "released": (
        "algorithm.adv_estimator=f_grpo",
        "++actor_rollout_ref.actor.policy_loss.f_divergence.preset=released",
    ),
}
"""Algorithm -> what it is to verl, beside `+fgrpo=smollm2`."""
MOST_STEPS = 10_000
MOST_SEED = 2**31 - 1
"""What every generator of random numbers takes."""


class RealModelError(ValueError):
    """The run cannot start or has failed; the text is one sentence that names the option and the remedy."""


@dataclass(frozen=True)
class RealModelOptions:
    """What the command line can set.

    Attributes:
        folder: where everything goes; what it holds already is not made again.
        algo: of `ARMS`.
        divergence: name of f, for f_grpo and released.
        model: Hugging Face folder in place of SmolLM2.
        data: files or folders of problems, in place of the published MAWPS.
        steps: of training.
        seed: of the data order and the rollouts.
        learning_rate: of the actor.
        overrides: further settings of verl.
    """

    folder: Path
    algo: str = "f_grpo"
    divergence: str | None = None
    model: Path | None = None
    data: tuple[Path, ...] = ()
    steps: int = 8
    seed: int = 0
    learning_rate: float | None = None
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            RealModelError: names the option and the remedy.
        """
        if self.algo not in ARMS:
            raise RealModelError(f"ALGO={self.algo} is not known; choose one of {', '.join(ARMS)}.")
        names = [name for name in available_divergences() if name != "alpha"]
        if self.divergence is not None:
            if self.algo.startswith("grpo"):
                raise RealModelError(f"DIVERGENCE={self.divergence} means nothing to ALGO={self.algo}; remove one.")
            if self.divergence not in names:
                raise RealModelError(f"DIVERGENCE={self.divergence} is not known; choose one of {', '.join(names)}.")
        if not 1 <= self.steps <= MOST_STEPS:
            raise RealModelError(f"STEPS={self.steps} must lie between 1 and {MOST_STEPS}.")
        if self.learning_rate is not None and not 0 <= self.learning_rate < 1:
            raise RealModelError(f"--learning-rate={self.learning_rate} must lie in [0, 1).")
        if not 0 <= self.seed <= MOST_SEED:
            raise RealModelError(f"SEED={self.seed} must lie between 0 and {MOST_SEED}.")
        if self.folder.exists() and not self.folder.is_dir():
            raise RealModelError(f"RUN={self.folder} is a file; name a folder.")
        for path in self.data:
            if not path.exists():
                raise RealModelError(f"DATA={path} does not exist; name a file or folder of problems.")
        if self.model is not None:
            try:
                check_model(str(self.model.absolute()), "MODEL")
                load_tokenizer(self.model, "MODEL")
            except ValueError as error:
                raise RealModelError(str(error)) from None
            _check_weights(self.model)


def _check_weights(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RealModelError(f"MODEL={model}: {index.name} is cut off or none; copy the folder anew.") from None
    if missing := sorted(name for name in shards if not (model / name).is_file()):
        raise RealModelError(f"MODEL={model}: of its weights {missing[0]} is missing; copy the folder anew.")
    if not shards and not any(any(model.glob(kind)) for kind in ("*.safetensors", "pytorch_model*.bin")):
        raise RealModelError(f"MODEL={model}: holds no weights (.safetensors); save the model with save_pretrained.")
