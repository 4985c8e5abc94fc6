"""Starts the reference policy for a loss that asks for it. Patch: patches/0002-reference-policy-for-losses.patch.

``need_reference_policy`` looks at the KL switches alone. The patched host also looks at what the policy loss asks for.
"""

from typing import Any

import wrapt

from fgrpo_plugin.host.shims import known_source

HASHES = {"b8a793a391c047143b1a5773c8391b362f0e4062e467022ed09a27f57505e6d7": "verl 0.9.1"}


def apply(utils: Any) -> bool:
    """Adapt ``verl.trainer.ppo.utils``; False where the host looks at the policy loss itself."""
    if hasattr(utils, "policy_loss_batch_fields"):
        return False
    known_source(
        utils.need_reference_policy,
        hashes=HASHES,
        what="verl.trainer.ppo.utils.need_reference_policy",
        remedy="install verl==0.9.1, or apply patches/0002-reference-policy-for-losses.patch to this version",
    )
    utils.need_reference_policy = wrapt.FunctionWrapper(utils.need_reference_policy, _need_reference_policy)
    return True


def _need_reference_policy(wrapped, instance, args, kwargs):
    from fgrpo_plugin.host.validate import is_f_divergence, require_validated

    config = kwargs["config"] if "config" in kwargs else args[0]
    if is_f_divergence(config):
        require_validated(config.algorithm)
        return True
    return wrapped(*args, **kwargs)
