"""verl's own validation, before Ray starts: it makes it in its task runner, minutes later."""

import contextlib
import io
from typing import Any

from omegaconf import DictConfig


def check_by_verl(config: DictConfig) -> None:
    """Refuse what ``verl.utils.config.validate_config`` or the class of the rollout would, once ours is filled in.

    Raises:
        ValueError: verl's reason, in one line.
    """
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # it says that it passed, and will say so again
            validate_config(config, use_reference_policy=True, use_critic=False)
            omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    except Exception as error:  # assertions, and whatever its dataclasses raise
        raise ValueError(f"verl refuses this configuration: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    reason: Any = error
    while (cause := reason.__cause__) is not None:  # Hydra wraps what a dataclass raises
        reason = cause
    return " ".join(str(reason).split()) or type(reason).__name__
