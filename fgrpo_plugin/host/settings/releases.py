"""What an older verl that is known too lacks of the pinned one: refused or said, by a look at what it has."""

from importlib.metadata import version
from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.pinned import VERL


def check_release(config: Any, *, rolls_out: bool) -> None:
    """Refuse what the installed verl cannot do for this run, and say what it does in another way.

    Args:
        config: the composed configuration of ``verl.trainer.main_ppo``.
        rolls_out: whether the run wants a rollout engine.

    Raises:
        ValueError: names the setting and the remedy.
    """
    if not rolls_out and not goes_without_engine():
        raise ValueError(
            f"lam=1 without a rollout engine: verl {version('verl')} starts one whatever the trainer says; set "
            f"data.preference.keep_rollout=true, or install verl=={VERL}."
        )
    filtering = OmegaConf.select(config, "algorithm.filter_groups")
    if filtering is not None and filtering.enable and filtering.metric == "reward" and not filters_by_own_reward():
        say(
            f"fgrpo-plugin: WARNING: algorithm.filter_groups.metric=reward: verl {version('verl')} takes the number "
            "`reward` that the reward function reports, and ends the run where it reports none; name another that it "
            f"reports, such as acc, or install verl=={VERL}."
        )


def goes_without_engine() -> bool:
    """Whether verl's trainer asks its subclass if it wants a rollout engine, see ``driver/offline.py``."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    return "_enable_hybrid_replicas" in PPOTrainer._setup.__code__.co_consts


def filters_by_own_reward() -> bool:
    """Whether ``reward`` is verl's own reward to `algorithm.filter_groups`."""
    from verl.trainer.ppo.v1 import replay_buffer

    return hasattr(replay_buffer, "FILTER_GROUPS_REWARD_METRIC")
