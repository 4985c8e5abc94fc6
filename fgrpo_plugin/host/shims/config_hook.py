"""Completes the configuration before verl reads it. Patch: 0003-config-hooks.patch in patches/.

``auto_set_device`` is the first thing that ``main_ppo`` does with the composed configuration, before it asks whether a
reference policy is needed. The patched verl calls registered configuration hooks there.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from fgrpo_plugin.foreign_text import printable
from fgrpo_plugin.host.shims import require_replaced
from fgrpo_plugin.leftovers import mark_this_process, watch_for

ENTRY_POINT = "verl/trainer/main_ppo.py"
HOOK = "register_config_hook"


def apply(device: Any) -> bool:
    """Adapt ``verl.utils.device``; False where verl has hooks, and only other entry points are refused."""
    host_can = _host_has_hooks()
    if not host_can:
        require_replaced(device.auto_set_device, "verl.utils.device:auto_set_device", "0003-config-hooks.patch")
    device.auto_set_device = _checking_config(device.auto_set_device, completing=not host_can)
    return not host_can


def use_host_hooks(config_module: ModuleType) -> None:
    """Complete configurations in the hooks of ``verl.utils.config``, where it has them."""
    if hasattr(config_module, HOOK):
        getattr(config_module, HOOK)(begin)


def _host_has_hooks() -> bool:
    """Tell by verl's source whether it has the hooks: ``verl.utils.config`` cannot be imported from here."""
    spec = importlib.util.find_spec("verl.utils.config")
    return spec is not None and spec.origin is not None and f"def {HOOK}(" in Path(spec.origin).read_text()


def _checking_config(stock: Callable, completing: bool) -> Callable:
    @wraps(stock)
    def auto_set_device(config) -> None:
        stock(config)
        if not _is_ours(config):
            return
        caller = sys._getframe(1).f_code.co_filename.replace("\\", "/")
        if not caller.endswith(ENTRY_POINT):
            _exit(
                f"algorithm.adv_estimator={config.algorithm.adv_estimator} supports the entry point "
                f"verl.trainer.main_ppo alone, not {caller.rsplit('/', 1)[-1]}; start the run with "
                "`python -m verl.trainer.main_ppo`."
            )
        if completing:
            begin(config)

    return auto_set_device


def begin(config: Any) -> None:
    """Complete and check ``config`` in place, and start the watch that cleans up once this process has ended."""
    if complete_or_exit(config):
        watch_for(os.getpid(), mark_this_process())  # one beside its starter's: either may be killed alone


def complete_or_exit(config: Any) -> bool:
    """Complete and check ``config`` in place, or end the process with one sentence; return whether it is ours."""
    from fgrpo_plugin.host.settings.switch import complete

    if not _is_ours(config):
        return False
    try:
        complete(config)
    except ValueError as error:
        _exit(str(error))
    return True


def _is_ours(config: Any) -> bool:
    from fgrpo_plugin.host.settings.reading import is_f_divergence, uses_our_loss

    return is_f_divergence(config) or uses_our_loss(config)


def _exit(sentence: str) -> NoReturn:
    one_line = printable(sentence).replace("\n", "\\n")  # a value that it shows may have several
    sys.exit(f"fgrpo-plugin: {one_line}")
