"""verl's ``policy_loss`` section with our hyper-parameters in it, as a worker gets it."""

from dataclasses import dataclass, field
from typing import Any

from verl.workers.config import PolicyLossConfig

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import ESTIMATORS
from fgrpo_plugin.host.settings.reading import read_settings


@dataclass
class FDivergencePolicyLossConfig(PolicyLossConfig):
    """verl's ``PolicyLossConfig`` plus ``f_divergence``; the validation hook names it in ``_target_``.

    Raises:
        ValueError: another loss has taken the place of ours.
    """

    f_divergence: Any = field(default_factory=dict)
    """Hyper-parameters of the f-divergence loss, a `FDivergenceConfig` once constructed. OmegaConf reads this class as
    a schema, and knows none of their types."""

    def __post_init__(self) -> None:
        if not isinstance(self.f_divergence, FDivergenceConfig):  # Hydra hands a plain mapping over
            object.__setattr__(self, "f_divergence", read_settings(self.f_divergence))
        if self.loss_mode not in ESTIMATORS:
            raise ValueError(
                f"actor.policy_loss.loss_mode={self.loss_mode!r} has replaced ours after validation; "
                "remove the setting that overwrote it."
            )
