"""The host's ``policy_loss`` section with our hyper-parameters in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf
from verl.workers.config import PolicyLossConfig

from fgrpo_plugin.config import FDivergenceConfig

LOSS_MODES = ("f_grpo", "f_hal")


@dataclass
class FDivergencePolicyLossConfig(PolicyLossConfig):
    """verl's ``PolicyLossConfig`` plus ``f_divergence``; the validation hook names it in ``_target_``.

    Raises:
        ValueError: another loss has taken the place of ours.
    """

    f_divergence: FDivergenceConfig = field(default_factory=FDivergenceConfig)
    """Hyper-parameters of the f-divergence loss."""

    def __post_init__(self) -> None:
        if not isinstance(self.f_divergence, FDivergenceConfig):  # Hydra hands a plain mapping over
            object.__setattr__(self, "f_divergence", read_settings(self.f_divergence))
        if self.loss_mode not in LOSS_MODES:
            raise ValueError(
                f"actor.policy_loss.loss_mode={self.loss_mode!r} has replaced ours after validation; "
                "remove the setting that overwrote it."
            )


def read_settings(section: Mapping[str, Any]) -> FDivergenceConfig:
    """The hyper-parameters from a configuration section (a mapping or an OmegaConf node)."""
    values = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    return FDivergenceConfig(**values)  # type: ignore[arg-type]
