"""The losses: implicit reward, FDO and KLDO (off-policy), f-GRPO (on-policy) and f-HAL (both).

Shapes: n rows (responses), T response tokens; log-probs are natural (nats). Everything computes in float32 whatever the
model's dtype, or in float64 where an input is float64. No loss applies the scales s_all and s_on. Gradient flows
through `log_prob` alone.

    >>> import torch
    >>> from fgrpo_plugin.divergences import get_divergence
    >>> log_prob, ref = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]]), torch.tensor([[-2.0, -2.0], [-1.0, -0.5]])
    >>> r = implicit_reward(log_prob, ref, torch.ones(2, 2), beta=0.1)  # beta times the sum of log(pi / pi_ref)
    >>> r
    tensor([ 0.1000, -0.0500])
    >>> f_grpo_loss(r, torch.tensor([1.0, -1.0]), get_divergence("pearson"))  # (-0.1 + (-0.05 + 0.05^2 / 4)) / 2
    tensor(-0.0747)

Reference: Haldar et al., arXiv 2602.05946 (f-GRPO, f-HAL); Haldar et al., arXiv 2502.00657 (FDO).
"""

from fgrpo_plugin.losses.f_grpo import f_grpo_loss, f_grpo_row_losses
from fgrpo_plugin.losses.f_hal import f_hal_loss
from fgrpo_plugin.losses.fdo import fdo_loss, fdo_row_losses
from fgrpo_plugin.losses.kldo import kldo_loss
from fgrpo_plugin.losses.reward import clip_implicit_reward, implicit_reward
from fgrpo_plugin.losses.slopes import row_slopes

__all__ = [
    "clip_implicit_reward",
    "f_grpo_loss",
    "f_grpo_row_losses",
    "f_hal_loss",
    "fdo_loss",
    "fdo_row_losses",
    "implicit_reward",
    "kldo_loss",
    "row_slopes",
]
