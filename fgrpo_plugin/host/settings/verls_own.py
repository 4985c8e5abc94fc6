"""verl's own validation, before Ray starts: it makes it in its task runner, minutes later."""

import contextlib
import io
import warnings
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict


def check_by_verl(config: DictConfig, use_reference_policy: bool = True) -> None:
    """Refuse what ``verl.utils.config.validate_config`` or the class of the rollout would, once ours is filled in.

    Args:
        config: verl's whole configuration.
        use_reference_policy: whether there is one; f-GRPO has always.

    Raises:
        ValueError: verl's reason, in one line.
    """
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = deepcopy(config)
    with open_dict(config):
        # Of an adapter it looks at the largest rank that vLLM takes alone, and imports vLLM for it (refusals.py).
        for rank in ("lora_rank", "lora.rank"):
            if OmegaConf.select(config, f"actor_rollout_ref.model.{rank}"):
                OmegaConf.update(config, f"actor_rollout_ref.model.{rank}", 0)
    try:
        # It says that it passed, and will say so again.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            validate_config(config, use_reference_policy=use_reference_policy, use_critic=False)
            omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    except Exception as error:  # assertions, and whatever its dataclasses raise
        raise ValueError(f"verl refuses this configuration: {_one_line(error)}") from error


def needs_reference(config: DictConfig) -> bool:
    """Return whether verl starts a reference policy for this configuration of one of its own algorithms."""
    from verl.trainer.ppo.utils import need_reference_policy

    return bool(need_reference_policy(config))


def _one_line(error: BaseException) -> str:
    reason: Any = error
    while (cause := reason.__cause__) is not None:  # Hydra wraps what a dataclass raises
        reason = cause
    return " ".join(str(reason).split()) or type(reason).__name__
