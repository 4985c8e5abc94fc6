"""Hyper-parameters of the f-divergence losses, typed and checked when constructed. Knows nothing of the host."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo_plugin.divergences import Divergence, get_divergence
from fgrpo_plugin.setting_checks import is_number, require_one_of, require_positive

PRESETS: dict[str, dict[str, Any]] = {
    "stable": {"gamma": 0.0, "scale": "unit", "weight_scale": "side", "weight_level": "token_mean"},
    "paper": {"gamma": 0.0, "scale": "paper", "weight_scale": "group", "weight_level": "sequence"},
    "released": {"gamma": 1.0, "scale": "paper", "weight_scale": "group", "weight_level": "sequence"},
}
"""name -> what it gives to the settings that are left at None; docs/assumptions.md says how each is known."""
LEVELS = ("sequence", "sequence_mean", "token")
WEIGHTINGS = ("none", "softmax", "softmax_is")
WEIGHT_LEVELS = ("token_mean", "sequence")
WEIGHT_SCALES = ("side", "group")
SCALES = ("unit", "paper")
OLD_LOG_PROBS = ("current", "recomputed")
SCHEDULES = ("linear", "cosine", "step")


@dataclass
class FDivergenceConfig:
    """Hyper-parameters of the f-divergence losses (Haldar et al., arXiv 2602.05946).

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    preset: str = "stable"
    """What gamma, scale, weight_scale and weight_level are where they are None (`PRESETS`). ``stable``: ours.
    ``paper``: Algorithm 1 to the letter. ``released``: what the authors' scripts are reported to run; wherever pi_old
    is the policy itself (one optimiser step on fresh rollouts) its gradient is that of ``paper``."""
    divergence: str = "pearson"
    """Name of f, see ``fgrpo_plugin.divergences.available_divergences()``."""
    link: str | None = None
    """``variational`` or ``density_ratio``; None takes the variational link where there is one."""
    alpha: float | None = None
    """Order of the ``alpha`` divergence; no other divergence takes it."""
    beta: float = 0.1
    """Scale of log(pi/pi_ref) in the implicit reward; smaller allows the policy to go further from the reference."""
    gamma: float | None = None
    """Scale of log(pi/pi_old) in the implicit reward; None takes the preset's."""
    level: str = "sequence"
    """Implicit reward per ``sequence`` (sum over tokens), ``sequence_mean`` (sum / length) or ``token``."""
    weighting: str = "softmax_is"
    """Weights inside a group: ``softmax_is`` (self-normalised importance sampling, the paper's), ``softmax``
    (without 1/pi_old) or ``none``."""
    weight_cap: float | None = None
    """Largest weight, in multiples of a side's mean weight; the excess goes to the side's other rows."""
    weight_temperature: float = 1.0
    """Divides the reward inside the softmax of the group weights."""
    weight_level: str | None = None
    """pi_old in ``softmax_is``: per-token geometric mean (``token_mean``), or the whole ``sequence`` as in the paper
    (which puts a long group's weight on one row); None takes the preset's."""
    weight_scale: str | None = None
    """Weights of the softmax modes: a mean of 1 on each ``side`` of a group, or shares of the whole ``group`` as in the
    paper; None takes the preset's."""
    scale: Any = None
    """(s_all, s_on): ``unit`` = (1/(beta+gamma), 1), ``paper`` = (1, (1+beta)/(beta+gamma)), or two positive numbers;
    None takes the preset's."""
    implicit_reward_clip: float | None = None
    """Clips the implicit reward to [-c, c] before the link, inside the divergence's own float32 range."""
    lam: Any = 0.0
    """lambda, the weight of the off-policy half (f-HAL), in [0, 1]; f-GRPO is lam = 0. Or a schedule:
    ``{schedule: linear | cosine, start: 0.8, end: 0.2, steps: null}`` (null: the whole run), or
    ``{schedule: step, values: [[1, 0.8], [100, 0.5]]}`` (from step 1, from step 100)."""
    preference_gamma: float = 0.0
    """gamma of preference rows, whose pi_old is the current policy at the beginning of the update."""
    old_log_prob: str = "current"
    """Where log pi_old of the gamma term comes from: the detached ``current`` log-prob (exact for one optimiser step
    on fresh rollouts) or ``recomputed`` by the actor. Filled in by the host's validation."""

    def __post_init__(self) -> None:
        require_one_of("preset", self.preset, tuple(PRESETS))
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        require_one_of("level", self.level, LEVELS)
        require_one_of("weighting", self.weighting, WEIGHTINGS)
        require_one_of("weight_level", self.weight_level, WEIGHT_LEVELS)
        require_one_of("weight_scale", self.weight_scale, WEIGHT_SCALES)
        require_one_of("old_log_prob", self.old_log_prob, OLD_LOG_PROBS)
        require_positive("beta", self.beta)
        require_positive("weight_temperature", self.weight_temperature)
        if not is_number(self.gamma) or self.gamma < 0:  # type: ignore[operator]
            raise ValueError(f"gamma={self.gamma!r} must be a number >= 0; 0 leaves pi_old out of the implicit reward.")
        if not is_number(self.preference_gamma) or self.preference_gamma < 0:
            raise ValueError(f"preference_gamma={self.preference_gamma!r} must be a number >= 0.")
        if isinstance(self.lam, Mapping):
            self.lam = dict(self.lam)
            LambdaSchedule(**self.lam)
        else:
            _share("lam", self.lam)
        if self.implicit_reward_clip is not None:
            require_positive("implicit_reward_clip", self.implicit_reward_clip)
        if self.weight_cap is not None and (not is_number(self.weight_cap) or self.weight_cap < 1):
            raise ValueError(f"weight_cap={self.weight_cap!r} must be at least 1 (multiples of the mean), or null.")
        if self.weight_cap is not None and self.weight_scale == "group":
            raise ValueError(
                f"weight_cap={self.weight_cap!r} with weight_scale=group: a cap is in multiples of a side's mean "
                "weight, which only weight_scale=side sets to 1; remove the cap, or set weight_scale=side."
            )
        if isinstance(self.scale, str):
            require_one_of("scale", self.scale, SCALES)
        elif not _is_pair_of_positive(self.scale):
            raise ValueError(f"scale={self.scale!r} must be 'unit', 'paper' or two positive numbers [s_all, s_on].")
        self.build_divergence()

    def build_divergence(self) -> Divergence:
        """The divergence with its link.

        Raises:
            ValueError: unknown name, refused link, or alpha given to a divergence that has none.
        """
        params = {} if self.alpha is None else {"alpha": self.alpha}
        return get_divergence(self.divergence, self.link, **params)

    @property
    def constant_lam(self) -> float | None:
        """lambda where it is constant, None where it is scheduled."""
        return None if isinstance(self.lam, Mapping) else float(self.lam)

    def lam_at(self, step: int, total_steps: int) -> float:
        """lambda of a training step.

        Args:
            step: from 1.
            total_steps: of the whole run; > 0.
        """
        if isinstance(self.lam, Mapping):
            return LambdaSchedule(**self.lam).at(step, total_steps)
        return float(self.lam)

    def scales(self) -> tuple[float, float]:
        """(s_all, s_on) of the minimised loss s_all * (lam * L_FDO + (1 - lam) * s_on * L_fGRPO)."""
        assert self.gamma is not None
        if self.scale == "unit":
            return 1.0 / (self.beta + self.gamma), 1.0
        if self.scale == "paper":
            # Algorithm 1's 1 + 1/beta on the on-policy half; at gamma = 1 the implicit reward brings it itself.
            return 1.0, (1.0 + self.beta) / (self.beta + self.gamma)
        s_all, s_on = self.scale
        return float(s_all), float(s_on)


@dataclass
class LambdaSchedule:
    """lambda as a function of the training step. Both halves stay in every update, also where lambda is 0 or 1.

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    schedule: str
    """``linear`` or ``cosine`` from ``start`` to ``end`` over ``steps``, or ``step`` through ``values``."""
    start: float | None = None
    """lambda at step 1."""
    end: float | None = None
    """lambda from step ``steps`` on."""
    steps: int | None = None
    """Training steps from ``start`` to ``end``; None takes the whole run."""
    values: Any = None
    """[[first step, lambda], ...] of ``schedule=step``, by rising step, the first of them 1."""

    def __post_init__(self) -> None:
        require_one_of("lam.schedule", self.schedule, SCHEDULES)
        if self.schedule != "step":
            _share("lam.start", self.start)
            _share("lam.end", self.end)
            if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 2):
                raise ValueError(f"lam.steps={self.steps!r} must be a whole number >= 2, or null for the whole run.")
            return
        try:
            first_steps = [int(first) for first, _ in self.values]
        except (TypeError, ValueError):
            first_steps = []
        if not first_steps or first_steps[0] != 1 or sorted(set(first_steps)) != first_steps:
            raise ValueError(f"lam.values={self.values!r} must be [[1, lambda], [step, lambda], ...] by rising step.")
        for _, value in self.values:
            _share("lam.values", value)

    def at(self, step: int, total_steps: int) -> float:
        """lambda of ``step`` (from 1) in a run of ``total_steps``."""
        if self.schedule == "step":
            return float([value for first, value in self.values if first <= step][-1])
        assert self.start is not None and self.end is not None
        done = min(max(step - 1, 0) / max((self.steps or total_steps) - 1, 1), 1.0)
        if self.schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


def _share(name: str, value: object) -> None:
    if not is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r} must lie in [0, 1]; 0 is f-GRPO, 1 uses preference data alone.")


def _is_pair_of_positive(value: object) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    return all(is_number(number) and number > 0 for number in value)
