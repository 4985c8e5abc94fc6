"""Hyper-parameters of the f-divergence losses, typed and checked when constructed. Knows nothing of verl."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fgrpo_plugin.divergences import Divergence, get_divergence
from fgrpo_plugin.typed_settings import Expected, Finite, Name, NotNegative, Positive, Share, typed_settings

DEFAULT_LAM = 0.5
"""lambda of f-HAL where none is set; f-GRPO has 0."""
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Normal numbers of float32."""
PRESETS: dict[str, dict[str, Any]] = {
    "stable": {"gamma": 0.0, "scale": "unit", "weight_scale": "side", "weight_level": "token_mean"},
    "paper": {"gamma": 0.0, "scale": "paper", "weight_scale": "group", "weight_level": "sequence"},
    "released": {"gamma": 1.0, "scale": "paper", "weight_scale": "group", "weight_level": "sequence"},
}
"""name -> what it gives to the settings that are left at None; docs/assumptions.md says how each is known."""
_Pair = Annotated[
    list[Positive],
    Field(min_length=2, max_length=2),
    Expected("two numbers > 0, [s_all, s_on]"),
    BeforeValidator(lambda pair: list(pair) if isinstance(pair, tuple) else pair),
]
_Steps = Annotated[
    list[
        Annotated[
            tuple[Annotated[int, Field(ge=1)], Share],
            BeforeValidator(lambda row: tuple(row) if isinstance(row, list) else row),
        ]
    ],
    Field(min_length=1),
    Expected("[[1, lambda], [step, lambda], ...] by rising step"),
]
_Lambda = Annotated[
    Share | dict[str, Any],
    Expected("a number in [0, 1] (0 is f-GRPO, 1 uses preference data alone), or a schedule"),
]


@typed_settings()
class FDivergenceConfig:
    """Hyper-parameters of the f-divergence losses (Haldar et al., arXiv 2602.05946).

    Frozen. What the preset fills in is a value like any other from then on, which ``dataclasses.replace`` keeps: for
    another preset construct anew, from what you set yourself.

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    preset: Literal["stable", "paper", "released"] = "stable"
    """What gamma, scale, weight_scale and weight_level are where they are null. ``stable``: ours.
    ``paper``: Algorithm 1 as others read it. ``released``: what the authors' scripts are reported to run; wherever
    pi_old is the policy itself (one optimiser step on fresh rollouts) its gradient is that of ``paper``."""
    divergence: Name = "pearson"
    """Name of f, built in or given to ``register_divergence``; docs/divergences.md has what each one does."""
    link: Literal["variational", "density_ratio"] | None = None
    """``variational`` or ``density_ratio``; null takes the variational link where there is one."""
    alpha: Finite | None = None
    """Order of ``divergence=alpha``; no other divergence takes it."""
    beta: Positive = 0.1
    """Scale of log(pi/pi_ref) in the implicit reward, DPO's beta: slopes change after 1/beta nats; a smaller one lets
    the policy go further where they do, and does nothing where a slope is constant (docs/divergences.md)."""
    gamma: NotNegative | None = None
    """Scale of log(pi/pi_old) in the implicit reward; null takes the preset's."""
    level: Literal["sequence", "sequence_mean", "token"] = "sequence"
    """Implicit reward per ``sequence`` (sum over tokens), ``sequence_mean`` (sum / length) or ``token``."""
    weighting: Literal["none", "softmax", "softmax_is"] = "softmax_is"
    """Weights inside a group: ``softmax_is`` (self-normalised importance sampling, the paper's), ``softmax``
    (without 1/pi_old) or ``none``."""
    weight_cap: Annotated[Finite, Field(ge=1)] | None = None
    """Largest weight, in multiples of a side's mean weight; the excess goes to the side's other
    rows. With ``weight_scale=side`` only."""
    weight_temperature: Positive = 1.0
    """Divides the reward inside the softmax of the group weights."""
    weight_level: Literal["token_mean", "sequence"] | None = None
    """pi_old in ``softmax_is``: per-token geometric mean (``token_mean``), or the whole ``sequence`` as in the paper
    (which puts a long group's weight on one row); null takes the preset's."""
    weight_scale: Literal["side", "group"] | None = None
    """Weights of the softmax modes: a mean of 1 on each ``side`` of a group, or shares of the whole ``group`` as in the
    paper; null takes the preset's."""
    scale: Literal["unit", "paper"] | _Pair | None = None
    """[s_all, s_on], of which s_all multiplies the whole loss and s_on its on-policy half: ``unit`` is
    [1/(beta+gamma), 1], ``paper`` is [1, (1+beta)/(beta+gamma)], or two positive numbers; null takes the preset's."""
    implicit_reward_clip: Positive | None = None
    """Clips the implicit reward to [-c, c] before the link, inside the divergence's own float32 range."""
    lam: _Lambda = 0.0
    """lambda, the weight of the off-policy half (f-HAL), in [0, 1]; f-GRPO is lam = 0. Or a schedule:
    ``{schedule: linear | cosine, start: 0.8, end: 0.2, steps: null}`` (null: the whole run), or
    ``{schedule: step, values: [[1, 0.8], [100, 0.5]]}`` (from step 1, from step 100). What a number does depends on the
    preset: docs/lambda.md."""
    preference_gamma: NotNegative = 0.0
    """gamma of preference rows, whose pi_old is the current policy at the beginning of the update."""
    old_log_prob: Literal["current", "recomputed"] = "current"
    """Where log pi_old of the gamma term comes from: the detached ``current`` log-prob (exact for one optimiser step
    on fresh rollouts) or ``recomputed`` by the actor. Filled in by verl's validation."""

    def __post_init__(self) -> None:
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if isinstance(self.lam, Mapping):
            LambdaSchedule(**self.lam)
        if self.weight_cap is not None and self.weight_scale == "group":
            raise ValueError(
                f"weight_cap={self.weight_cap:g} with weight_scale=group: a cap is in multiples of a side's mean "
                "weight, which only weight_scale=side sets to 1; remove the cap, or set weight_scale=side."
            )
        self._check_scales()
        self.build_divergence()

    def _check_scales(self) -> None:
        """The workers compute in float32, where a factor beyond its range is infinite or 0."""
        s_all, s_on = self.scales()
        if any(not SMALLEST <= factor <= LARGEST for factor in (self.beta, s_all, s_on, s_all * s_on)):
            raise ValueError(
                f"beta={self.beta:g} with gamma={self.gamma:g} and scale={self.scale} makes the scales "
                f"[{s_all:g}, {s_on:g}]: beta, both scales and their product must be in float32's range, "
                f"{SMALLEST:.2g} to {LARGEST:.2g}; set beta near 0.1, or other scales."
            )

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
        assert self.scale is not None and not isinstance(self.scale, str)
        s_all, s_on = self.scale
        return float(s_all), float(s_on)


@typed_settings(prefix="lam.")
class LambdaSchedule:
    """lambda as a function of the training step. Both halves stay in every update, also where lambda is 0 or 1.

    Raises:
        ValueError: a value out of its range; the message names the setting, the value and the remedy.
    """

    schedule: Literal["linear", "cosine", "step"]
    """``linear`` or ``cosine`` from ``start`` to ``end`` over ``steps``, or ``step`` through ``values``."""
    start: Share | None = None
    """lambda at step 1."""
    end: Share | None = None
    """lambda from step ``steps`` on."""
    steps: Annotated[int, Field(ge=2)] | None = None
    """Training steps from ``start`` to ``end``; null takes the whole run."""
    values: _Steps | None = None
    """[[first step, lambda], ...] of ``schedule=step``, by rising step, the first of them 1."""

    def __post_init__(self) -> None:
        if self.schedule != "step":
            for name in ("start", "end"):
                if getattr(self, name) is None:
                    raise ValueError(f"lam.{name}=None must be a number in [0, 1] with schedule={self.schedule}.")
        elif (
            self.values is None
            or self.values[0][0] != 1
            or any(later <= first for (first, _), (later, _) in pairwise(self.values))
        ):
            raise ValueError(
                f"lam.values={self.values!r:.200} must be [[1, lambda], [step, lambda], ...] by rising step."
            )
        unread = ("values",) if self.schedule != "step" else ("start", "end", "steps")
        if given := [name for name in unread if getattr(self, name) is not None]:
            raise ValueError(f"lam.{given[0]} is not read with schedule={self.schedule}; remove it.")

    def at(self, step: int, total_steps: int) -> float:
        """lambda of ``step`` (from 1) in a run of ``total_steps``."""
        if self.schedule == "step":
            assert self.values is not None
            return float([value for first, value in self.values if first <= step][-1])
        assert self.start is not None and self.end is not None
        done = min(max(step - 1, 0) / max((self.steps or total_steps) - 1, 1), 1.0)
        if self.schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done
