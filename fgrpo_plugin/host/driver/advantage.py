"""The advantage estimator ``f_grpo`` in verl's registry."""

from typing import Any

import numpy as np
import torch

from fgrpo_plugin.advantages import group_advantages
from fgrpo_plugin.host.settings.reading import require_validated


def f_grpo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any = None,
    index: np.ndarray | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Group advantage a_i, spread over the response tokens as verl expects.

    Args:
        token_level_rewards: (n, T) rewards; their sum over tokens is R_i.
        response_mask: (n, T) in {0, 1}.
        config: verl's ``algorithm`` section; ``norm_adv_by_std_in_grpo`` is read.
        index: (n,) group id (the prompt's uid) of every row.
        kwargs: whatever else verl passes; not used.

    Returns:
        advantages and returns, both (n, T): a_i times the mask.
    """
    if config is not None:
        require_validated(config)
    if index is None:
        raise ValueError("the batch carries no 'uid', so responses cannot be grouped by prompt.")
    by_std = True if config is None else bool(config.get("norm_adv_by_std_in_grpo", True))
    advantages = group_advantages(token_level_rewards.sum(dim=-1), index, normalize_by_std=by_std)
    spread = advantages.to(token_level_rewards.dtype).unsqueeze(-1) * response_mask
    return spread, spread
