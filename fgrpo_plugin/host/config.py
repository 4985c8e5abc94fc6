"""The host's ``policy_loss`` section with our hyper-parameters in it."""

from dataclasses import dataclass, field

from verl.workers.config import PolicyLossConfig

from fgrpo_plugin.config import FDivergenceConfig

LOSS_MODES = ("f_grpo",)


@dataclass
class FDivergencePolicyLossConfig(PolicyLossConfig):
    """verl's ``PolicyLossConfig`` plus ``f_divergence``; the validation hook names it in ``_target_``.

    Raises:
        ValueError: another loss has taken the place of ours.
    """

    f_divergence: FDivergenceConfig = field(default_factory=FDivergenceConfig)
    """Hyper-parameters of the f-divergence loss."""

    def __post_init__(self) -> None:
        if self.loss_mode not in LOSS_MODES:
            raise ValueError(
                f"actor.policy_loss.loss_mode={self.loss_mode!r} has replaced 'f_grpo' after validation; "
                "remove the setting that overwrote it."
            )
