"""Puts our subclass behind each of verl's v1 trainer modes. Patch: 0004-extend-trainer-mode.patch in patches/.

``register_trainer`` refuses a name that is taken, and a new name would silently get the asynchronous replay buffer. The
subclass relies on where verl trains each row, which is checked here.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from fgrpo_plugin.host.driver.offline import OfflineTrainer
from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
from fgrpo_plugin.host.settings.reading import is_f_divergence, is_offline, require_validated
from fgrpo_plugin.host.shims import require_used


def apply(v1: ModuleType) -> bool:
    """Extend the trainers of ``verl.trainer.ppo.v1``; False where verl lets a plugin do so."""
    from verl.trainer.ppo.v1 import trainer_base
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer

    require_used()
    host_can = "override" in inspect.signature(register_trainer).parameters
    for name, stock in list(TRAINER_REGISTRY.items()):
        if issubclass(stock, FDivergenceTrainer):
            continue
        extended = extend(stock)
        if host_can:
            register_trainer(name, override=True)(extended)
        else:
            TRAINER_REGISTRY[name] = extended
    # Another plugin's trainer may be registered later, or was above.
    for module in (trainer_base, v1):
        module.__dict__["register_trainer"] = _extending(register_trainer, TRAINER_REGISTRY)
    return not host_can


def _extending(register_trainer: Callable[..., Any], registry: dict[str, Any]) -> Callable[..., Any]:
    """verl's decorator, which puts our subclass behind the name that it registers."""

    @wraps(register_trainer)
    def register(name: str, *args: Any, **kwargs: Any) -> Any:
        stocks = register_trainer(name, *args, **kwargs)

        def decorator(cls: Any) -> Any:
            if issubclass(registry.get(name, object), FDivergenceTrainer) and cls in registry[name].__mro__:
                return cls  # registered once more, which verl allows
            registered = stocks(cls)
            if not issubclass(cls, FDivergenceTrainer):
                registry[name] = extend(cls)
            return registered

        return decorator

    return register


def extend(stock: Any) -> Any:
    """Put our update in front of one of verl's trainers.

    An instance is of the class that its configuration asks for: ours, ours without a rollout engine where lambda is 1
    throughout, or for another algorithm the stock class itself. A user's subclass stays what it is.
    """
    extended: Any = type(f"FDivergence{stock.__name__}", (FDivergenceTrainer, stock), {})
    offline: Any = type(f"Offline{stock.__name__}", (OfflineTrainer, extended), {})

    def new(cls: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        ours = is_f_divergence(config)
        if ours:
            require_validated(config.algorithm)
        if cls is not extended:
            return stock.__new__(cls)
        if not ours:
            return stock(config, *args, **kwargs)
        return stock.__new__(offline if is_offline(config) else extended)

    extended.__new__ = new
    return extended
