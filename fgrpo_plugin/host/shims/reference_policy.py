"""Starts the reference policy for a loss that asks for it. Patch: 0002-reference-policy-for-losses.patch in patches/.

``need_reference_policy`` looks at the KL switches alone. The patched verl also looks at what the policy loss asks for.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from fgrpo_plugin.host.shims import require_replaced


def apply(utils: Any) -> bool:
    """Adapt ``verl.trainer.ppo.utils``; False where verl asks the loss (validation is checked there too)."""
    host_can = hasattr(utils, "policy_loss_batch_fields")
    if not host_can:
        require_replaced(
            utils.need_reference_policy,
            "verl.trainer.ppo.utils:need_reference_policy",
            "0002-reference-policy-for-losses.patch",
        )
    utils.need_reference_policy = _checking_validation(utils.need_reference_policy, answering=not host_can)
    return not host_can


def _checking_validation(stock: Callable, answering: bool) -> Callable:
    # A plain function: Ray pickles the globals of a user's trainer, and this may be one of them.
    @wraps(stock)
    def need_reference_policy(config):
        from fgrpo_plugin.host.settings.reading import is_f_divergence, require_validated

        if is_f_divergence(config):
            require_validated(config.algorithm)
            if answering:
                return True
        return stock(config)

    return need_reference_policy
