"""f-HAL: the mixture of both losses."""

import torch


def f_hal_loss(preference_loss: torch.Tensor, on_policy_loss: torch.Tensor, lam: float | torch.Tensor) -> torch.Tensor:
    """lambda L_FDO + (1 - lambda) L_on, where s_on, if any, is already in L_on.

    Args:
        preference_loss: L_FDO, scalar.
        on_policy_loss: L_fGRPO, scalar.
        lam: lambda in [0, 1]; at 0 and 1 the result is the one loss itself, and the other is not touched. A scalar
            tensor is not read, so that verl need not wait for it: the result is the same where both are finite.

    Returns:
        Scalar.

    Raises:
        ValueError: lam outside [0, 1].

    Reference:
        f-HAL, arXiv 2602.05946.
    """
    if isinstance(lam, torch.Tensor):
        lam = lam.to(on_policy_loss.dtype)
        return lam * preference_loss + (1 - lam) * on_policy_loss
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam} must lie in [0, 1]: 0 is on-policy data only, 1 is preference data only")
    if lam == 0:
        return on_policy_loss
    if lam == 1:
        return preference_loss
    return lam * preference_loss + (1 - lam) * on_policy_loss
