"""Which trainer a run would get, and whether our part of an update is in it."""

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.contract import USED_SOURCES

STOCK = ("sync", "colocate_async", "separate_async")
MIXED_IN = "FDivergenceTrainer"
"""The class that shims/trainer_mode.py puts in front of each trainer; it is above this room, hence by name."""


def check_trainer_mode(config: DictConfig) -> None:
    """Refuse a mode that verl does not know, or whose trainer would minimise nothing of ours; say which is not verl's.

    Raises:
        ValueError: names the setting and the remedy.
    """
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    trainer = TRAINER_REGISTRY.get(mode)
    if trainer is None:
        raise ValueError(f"trainer.v1.trainer_mode={mode} is not known; choose one of {', '.join(TRAINER_REGISTRY)}.")
    if not any(cls.__name__ == MIXED_IN for cls in trainer.__mro__):
        raise ValueError(
            f"trainer.v1.trainer_mode={mode} runs {trainer.__module__}.{trainer.__qualname__}, which has been put into "
            "verl's table of trainers without verl's register_trainer, or by one imported before this plugin, so that "
            "f-GRPO's part of an update is not in it; register it after fgrpo_plugin.host.register is imported, or "
            f"choose one of {', '.join(STOCK)}."
        )
    if mode not in STOCK:
        say(f"fgrpo-plugin: trainer.v1.trainer_mode={mode} is not one of verl's: {_relied_on(trainer)}")


def _relied_on(trainer: type) -> str:
    """Return what a foreign trainer has in place of methods that ours is written around."""
    used = {name.rsplit(".", 1)[1] for name in USED_SOURCES if ".v1.trainer" in name}
    own = {
        name
        for cls in trainer.__mro__
        if not cls.__module__.startswith(("verl.", "fgrpo_plugin."))
        for name in used & vars(cls).keys()
    }
    tried = f", and has not been tried with its own {', '.join(sorted(own))}" if own else ""
    return f"f-GRPO's part of an update stands in front of it{tried}."
