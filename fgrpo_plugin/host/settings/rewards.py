"""Whether a run can be rewarded: verl's own rules by data source, and the user's reward function."""

import functools
import inspect
import math
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin.host.settings.workers import module_of, object_of

CUSTOM = "reward.custom_reward_function"
NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")
"""What verl's reward managers give to a reward function, by name."""
ROUTER_NAMES = ("reward_router_address", "reward_model_tokenizer")
"""What they give beside where a reward model runs."""
# Their rules read objects (test cases, or the answers to a search), or make text of what they are given.
_NO_TEXT = ("searchR1", "codecontests", "apps", "codeforces", "taco", "numina")
_CODE = ("codecontests", "apps", "codeforces", "taco")

LARGEST_REWARD = 2.0**53
"""Beside a larger one, rewards of 0 and 1 are the same number in float64, in which a group is compared."""


def unusable_reward(value: Any) -> str | None:
    """Return why no advantage can be made of a reward, or None: it is no number, not finite, or far too large."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except OverflowError:  # a whole number beyond every float
        number = sys.float_info.max
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        return "is no finite number"
    if abs(number) > LARGEST_REWARD:
        return "is so large that the group's other rewards vanish beside it"
    return None


@functools.cache
def default_reward_problem(data_source: str) -> str | None:
    """Return why verl's own reward function cannot reward this data source, in a worker, or None."""
    from verl.utils.reward_score import default_compute_score

    if data_source in _CODE:
        return None  # it would run code
    try:
        default_compute_score(data_source, "0", "0", {})
    except NotImplementedError:
        return f"verl has no reward for data_source={data_source!r}; give your own in {CUSTOM}.path"
    except ImportError as error:
        return f"verl's reward for data_source={data_source!r} needs a package that is missing ({error}); install it"
    except Exception:  # it has one, which dislikes this probe
        return None
    return None


def earns_full_reward(data_source: str, response: str, ground_truth: str) -> bool:
    """Return whether verl's own reward function gives this response 1, the score of a right answer."""
    from verl.utils.reward_score import default_compute_score

    return default_compute_score(data_source, response, ground_truth) == 1


def reward_problem(row: dict[str, Any], *, custom: bool) -> str | None:
    """Return why a reward manager of verl could not reward responses to this row, or None.

    Args:
        row: of a data file.
        custom: whether the user's own reward function is called, in place of verl's rules.
    """
    source, reward = row.get("data_source"), row.get("reward_model")
    if "data_source" not in row or (not custom and (not isinstance(source, str) or not source)):
        return "'data_source' is missing, by which verl chooses its reward; add the column, for example openai/gsm8k"
    if not isinstance(reward, dict) or "ground_truth" not in reward:
        return "'reward_model' must be an object with 'ground_truth', which verl's reward managers read; add it"
    if not isinstance(row.get("extra_info"), dict | None):
        return f"'extra_info' must be an object, not {row['extra_info']!r:.40}"
    if custom:
        return None
    source = str(source)
    if problem := default_reward_problem(source):
        return problem
    truth = reward["ground_truth"]
    if source.startswith("searchR1") and not (isinstance(truth, dict) and "target" in truth):
        return f"reward_model.ground_truth must be an object with 'target' for {source}, not {truth!r:.40}"
    if not isinstance(truth, str) and not source.startswith(_NO_TEXT):
        kind = type(truth).__name__
        return (
            f"reward_model.ground_truth is a {kind} ({truth!r:.40}); verl's rule for {source} compares text, so that a "
            "right answer would score 0; write it as text"
        )
    return None


def uses_custom_reward(config: DictConfig) -> bool:
    """Return whether the run has a reward function of its own."""
    return bool(OmegaConf.select(config, f"{CUSTOM}.path"))


def reads_rows(config: DictConfig) -> bool:
    """Return whether the columns `data_source` and `reward_model` are read: by verl's own managers of rules alone."""
    own_manager = OmegaConf.select(config, "reward.reward_manager.source", default="register") != "register"
    agent = "actor_rollout_ref.rollout.agent"
    own_loop = any(
        OmegaConf.select(config, f"{agent}.{key}") for key in ("agent_loop_config_path", "agent_loop_manager_class")
    )
    model_alone = OmegaConf.select(config, "reward.reward_model.enable") and not uses_custom_reward(config)
    return not (own_manager or own_loop or model_alone)


def check_reward_manager(config: DictConfig) -> None:
    """Refuse a reward manager that verl does not have or cannot load, which fails once the models are loaded.

    Raises:
        ValueError: names the setting and those that are known.
    """
    manager = "reward.reward_manager"
    if OmegaConf.select(config, f"{manager}.source", default="register") != "register":
        if OmegaConf.select(config, f"{manager}.module.path"):  # without one verl refuses by itself
            object_of(config, f"{manager}.module.path", f"{manager}.name")
        return
    import verl.experimental.reward_loop.reward_manager  # noqa: F401  (registers verl's)
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    name = OmegaConf.select(config, "reward.reward_manager.name")
    if name is not None and name not in REWARD_MANAGER:
        known = ", ".join(sorted(REWARD_MANAGER))
        raise ValueError(f"reward.reward_manager.name={name} is not known; choose among {known}.")


def check_reward_function(config: DictConfig) -> None:
    """Import the user's reward function, as verl does in its workers after the models are loaded.

    Raises:
        ValueError: it cannot be imported, is not there, or does not take what verl calls it with.
    """
    old = OmegaConf.select(config, "custom_reward_function.path")
    if old:
        raise ValueError(f"custom_reward_function.path={old} is not read by this verl; set {CUSTOM}.path.")
    path = OmegaConf.select(config, f"{CUSTOM}.path")
    if not path:
        return
    name = str(OmegaConf.select(config, f"{CUSTOM}.name", default="compute_score"))
    module = module_of(config, f"{CUSTOM}.path")
    if module is None:
        return
    function = getattr(module, name, None)
    if not callable(function):
        defined = [
            found
            for found, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not found.startswith("_")
        ]
        there = f"it has {', '.join(defined)}" if defined else "it has no function"
        raise ValueError(f"{CUSTOM}.path={path}: there is no function {name!r} ({there}); set {CUSTOM}.name.")
    is_async = inspect.iscoroutinefunction(function)
    looks_async = inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
        vars(type(function)).get("__call__")
    )
    if inspect.isclass(function) or (looks_async and not is_async):
        what = "a class" if inspect.isclass(function) else "asynchronous in a way that verl does not await"
        raise ValueError(f"{CUSTOM}.path={path}: {name} is {what}; write a function, with def or async def.")
    if is_async and OmegaConf.select(config, "reward.reward_manager.name") == "remote":
        raise ValueError(f"{CUSTOM}.path={path}: {name} is async, which reward.reward_manager.name=remote refuses.")
    given = OmegaConf.select(config, f"{CUSTOM}.reward_kwargs") or {}
    names = (*NAMES, *(ROUTER_NAMES if OmegaConf.select(config, "reward.reward_model.enable") else ()))
    try:
        parameters = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # written in C: it cannot be told
        return
    try:
        parameters.bind(**{**dict.fromkeys(names), **dict(given)})
    except TypeError as error:
        raise ValueError(
            f"{CUSTOM}.path={path}: {name}{parameters} cannot be called as verl calls it, by name with "
            f"{', '.join((*names, *given))} ({error}); give it these parameters, or **kwargs."
        ) from None
