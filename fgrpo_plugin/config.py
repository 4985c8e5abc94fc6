"""Every hyper-parameter of f-GRPO and f-HAL, typed and checked when it is constructed. Knows nothing of the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo_plugin.divergences import Divergence, get_divergence

PRESETS = {"paper": 0.0, "released": 1.0}  # name -> gamma, see FDivergenceConfig.preset
LEVELS = ("sequence", "sequence_mean", "token")
WEIGHTINGS = ("none", "softmax", "softmax_is")
WEIGHT_LEVELS = ("token_mean", "sequence")
SCALES = ("unit", "paper")
OLD_LOG_PROBS = ("current", "recomputed")


@dataclass
class FDivergenceConfig:
    """Hyper-parameters of the f-divergence losses (Haldar et al., arXiv 2602.05946).

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    preset: str = "paper"
    """``paper``: gamma = 0, the manuscript's definition. ``released``: gamma = 1, as the authors' scripts are
    reported to set it. An explicit ``gamma`` wins."""
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
    weight_level: str = "token_mean"
    """pi_old in ``softmax_is``: per-token geometric mean, or the whole ``sequence`` as in the paper (which puts a
    long group's weight on one row)."""
    scale: Any = "unit"
    """(s_all, s_on): ``unit`` = (1/(beta+gamma), 1), ``paper`` = (1, 1/(1+1/beta)), or two positive numbers."""
    implicit_reward_clip: float | None = None
    """Clips the implicit reward to [-c, c] before the link, inside the divergence's own float32 range."""
    lam: float = 0.0
    """Weight of the off-policy half (f-HAL); f-GRPO is lam = 0."""
    old_log_prob: str = "current"
    """Where log pi_old of the gamma term comes from: the detached ``current`` log-prob (exact for one optimiser step
    on fresh rollouts) or ``recomputed`` by the actor. Filled in by the host's validation."""

    def __post_init__(self) -> None:
        _one_of("preset", self.preset, tuple(PRESETS))
        if self.gamma is None:
            self.gamma = PRESETS[self.preset]
        _one_of("level", self.level, LEVELS)
        _one_of("weighting", self.weighting, WEIGHTINGS)
        _one_of("weight_level", self.weight_level, WEIGHT_LEVELS)
        _one_of("old_log_prob", self.old_log_prob, OLD_LOG_PROBS)
        _positive("beta", self.beta)
        _positive("weight_temperature", self.weight_temperature)
        if not _is_number(self.gamma) or self.gamma < 0:
            raise ValueError(f"gamma={self.gamma!r} must be a number >= 0; 0 is the paper's definition.")
        if not _is_number(self.lam) or not 0 <= self.lam <= 1:
            raise ValueError(f"lam={self.lam!r} must lie in [0, 1]; 0 is f-GRPO, 1 uses preference data alone.")
        if self.implicit_reward_clip is not None:
            _positive("implicit_reward_clip", self.implicit_reward_clip)
        if self.weight_cap is not None and (not _is_number(self.weight_cap) or self.weight_cap < 1):
            raise ValueError(f"weight_cap={self.weight_cap!r} must be at least 1 (multiples of the mean), or null.")
        if isinstance(self.scale, str):
            _one_of("scale", self.scale, SCALES)
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

    def scales(self) -> tuple[float, float]:
        """(s_all, s_on) of the minimised loss s_all * (lam * L_FDO + (1 - lam) * s_on * L_fGRPO)."""
        assert self.gamma is not None
        if self.scale == "unit":
            return 1.0 / (self.beta + self.gamma), 1.0
        if self.scale == "paper":
            return 1.0, 1.0 / (1.0 + 1.0 / self.beta)  # assumed place of the paper's constant
        s_all, s_on = self.scale
        return float(s_all), float(s_on)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < float("inf")
    )


def _is_pair_of_positive(value: object) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    return all(_is_number(number) and number > 0 for number in value)


def _positive(name: str, value: object) -> None:
    if not _is_number(value) or value <= 0:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r} must be a number > 0.")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}.")
