"""Whether a run can be rewarded: verl's own rules by data source, and the user's reward function."""

import functools
import inspect
from typing import Any

from omegaconf import DictConfig, OmegaConf

CUSTOM = "reward.custom_reward_function"
NAMES = ("data_source", "solution_str", "ground_truth", "extra_info")
"""What verl's reward managers give to a reward function, by name."""
# Their rules read objects: test cases, or lists of answers to a search.
_OBJECTS = ("searchR1", "codecontests", "apps", "codeforces", "taco")


@functools.cache
def has_default_reward(data_source: str) -> bool:
    """Whether verl's own reward function knows this data source; where it does not, it fails in a worker."""
    from verl.utils.reward_score import default_compute_score

    try:
        default_compute_score(data_source, "0", "0", {})
    except NotImplementedError:
        return False
    except Exception:  # it has one, which dislikes this probe
        return True
    return True


def earns_full_reward(data_source: str, response: str, ground_truth: str) -> bool:
    """Whether verl's own reward function gives this response 1, the score of a right answer."""
    from verl.utils.reward_score import default_compute_score

    return default_compute_score(data_source, response, ground_truth) == 1


def reward_problem(row: dict[str, Any], *, custom: bool) -> str | None:
    """Why a reward manager of verl could not reward responses to this row, or None.

    Args:
        row: of a data file.
        custom: whether the user's own reward function is called, in place of verl's rules.
    """
    source, reward = row.get("data_source"), row.get("reward_model")
    if not isinstance(source, str) or not source:
        return "'data_source' is missing, by which verl chooses its reward; add the column, for example openai/gsm8k"
    if not isinstance(reward, dict) or "ground_truth" not in reward:
        return "'reward_model' must be an object with 'ground_truth', which verl's reward managers read; add it"
    if custom:
        return None
    if not has_default_reward(source):
        return f"verl has no reward for data_source={source!r}; give your own in {CUSTOM}.path"
    truth = reward["ground_truth"]
    if not isinstance(truth, str) and not source.startswith(_OBJECTS):
        kind = type(truth).__name__
        return (
            f"reward_model.ground_truth is a {kind} ({truth!r:.40}); verl's rule for {source} compares text, so that a "
            "right answer would score 0; write it as text"
        )
    return None


def uses_custom_reward(config: DictConfig) -> bool:
    """Whether the run has a reward function of its own."""
    return bool(OmegaConf.select(config, f"{CUSTOM}.path"))


def reads_rows(config: DictConfig) -> bool:
    """Whether `data_source` and `reward_model` are read: not by a reward model, nor by a manager of the user's own."""
    return not OmegaConf.select(config, "reward.reward_model.enable") and (
        OmegaConf.select(config, "reward.reward_manager.source", default="register") == "register"
    )


def check_reward_function(config: DictConfig) -> None:
    """Import the user's reward function, as verl does in its workers after the models are loaded.

    Raises:
        ValueError: it cannot be imported, is not there, or does not take what verl calls it with.
    """
    path = OmegaConf.select(config, f"{CUSTOM}.path")
    if not path:
        return
    from verl.utils.import_utils import load_module

    name = str(OmegaConf.select(config, f"{CUSTOM}.name", default="compute_score"))
    try:
        module = load_module(path)
    except (Exception, SystemExit) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{CUSTOM}.path={path}: cannot be imported ({type(cause).__name__}: {reason:.200})."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        defined = [
            found
            for found, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not found.startswith("_")
        ]
        there = f"it has {', '.join(defined)}" if defined else "it has no function"
        raise ValueError(f"{CUSTOM}.path={path}: there is no function {name!r} ({there}); set {CUSTOM}.name.")
    given = OmegaConf.select(config, f"{CUSTOM}.reward_kwargs") or {}
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: it cannot be told
        return
    try:
        parameters.bind(**{**dict.fromkeys(NAMES), **dict(given)})
    except TypeError as error:
        raise ValueError(
            f"{CUSTOM}.path={path}: {name}{parameters} cannot be called as verl calls it, by name with "
            f"{', '.join((*NAMES, *given))} ({error}); give it these parameters, or **kwargs."
        ) from None
