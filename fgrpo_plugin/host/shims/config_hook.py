"""Completes the configuration before the host reads it. Patch: 0003-config-hooks.patch in patches/.

``auto_set_device`` is the first thing that ``main_ppo`` does with the composed configuration, before it asks whether a
reference policy is needed. The patched host calls registered configuration hooks there.
"""

import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from fgrpo_plugin.host.shims import APPLIED, REFUSED, known_source

HASHES = {"031feb0fd93538991fc74fb8cde2dcaddf7c1855cd1d06f809ecfb64cba6e5fc": "verl 0.9.1"}
ENTRY_POINT = "verl/trainer/main_ppo.py"


def apply(device: Any) -> bool:
    """Adapt ``verl.utils.device``, which is imported before anything can tell whether the host has hooks."""
    known_source(
        device.auto_set_device,
        hashes=HASHES,
        what="verl.utils.device.auto_set_device",
        remedy="install verl==0.9.1, or apply 0003-config-hooks.patch of patches/main to this version",
    )
    device.auto_set_device = _completing_config(device.auto_set_device)
    return True


def use_host_hooks(config_module: ModuleType) -> None:
    """Switch this shim off where ``verl.utils.config`` has configuration hooks, and use those."""
    if hasattr(config_module, "register_config_hook"):
        config_module.register_config_hook(complete_or_exit)
        REFUSED.pop("config_hook", None)
        APPLIED["config_hook"] = "not needed"


def _completing_config(stock: Callable) -> Callable:
    @wraps(stock)
    def auto_set_device(config) -> None:
        stock(config)
        if APPLIED.get("config_hook") != "not needed":
            caller = sys._getframe(1).f_code.co_filename.replace("\\", "/")
            complete_or_exit(config, entry_point=caller)

    return auto_set_device


def complete_or_exit(config, entry_point: str = ENTRY_POINT) -> None:
    """Complete and check ``config`` in place, or end the process with one sentence."""
    from fgrpo_plugin.host.validate import complete, is_f_divergence, uses_our_loss

    if not (is_f_divergence(config) or uses_our_loss(config)):
        return
    try:
        if not entry_point.endswith(ENTRY_POINT):
            raise ValueError(
                f"algorithm.adv_estimator={config.algorithm.adv_estimator} supports the entry point "
                f"verl.trainer.main_ppo alone, not {entry_point.rsplit('/', 1)[-1]}; start the run with "
                "`python -m verl.trainer.main_ppo`."
            )
        complete(config)
    except ValueError as error:
        sys.exit(f"fgrpo-plugin: {error}")
