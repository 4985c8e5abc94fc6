"""Compose a recipe and overrides into one configuration that verl takes, or say what is wrong with them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fgrpo_plugin.folders import expanded
from fgrpo_plugin.host.contract import ESTIMATORS, F_HAL, LOSS
from fgrpo_plugin.host.settings.compose import compose, describe_unknown, host_defaults, unknown_settings
from fgrpo_plugin.host.settings.preferences import preference_settings
from fgrpo_plugin.host.settings.reading import is_f_divergence, section_values, uses_our_loss
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from fgrpo_plugin.host.settings.trainer_mode import check_trainer_mode
from fgrpo_plugin.host.settings.verls_own import check_by_verl, needs_reference
from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.configuration import (
    check_micro_batches_are_set,
    check_types,
    engine_of,
    overridden,
    overrides,
    planned_run_from_config,
    setting,
)
from fgrpo_plugin.plan.gpus import Gpu
from fgrpo_plugin.plan.older_options import Rewritten
from fgrpo_plugin.plan.planned_run import PlannedRun

ALONE = ("+fgrpo=rlvr", "actor_rollout_ref.rollout.tensor_model_parallel_size=1")
"""What ``--model`` alone starts from: what every recipe of ours shares, and a rollout engine on each GPU."""
FSDP2 = "actor_rollout_ref.actor.strategy=fsdp2"


def first_words(recipe: str | None, model: str | None, given: Rewritten) -> list[str]:
    """Overrides that the given ones come after and replace: a recipe's group; for ``--model`` without one, `ALONE`.

    Who names a group of ours or another algorithm starts from verl's own defaults.
    """
    if recipe:
        return [f"+fgrpo={recipe}"]
    named = dict(word.lstrip("+").partition("=")[::2] for word in given.overrides)
    if model is None or "fgrpo" in named or named.get("algorithm.adv_estimator", ESTIMATORS[0]) not in ESTIMATORS:
        return []
    another_engine = {"model_engine", setting(FSDP2)} & set(named) or "engine" in given.fields
    return [*ALONE, *([] if another_engine else [FSDP2])]


def compose_run(
    first: list[str], asked: Mapping[str, Any], given: Rewritten, say: Callable[[str], None]
) -> tuple[list[str], DictConfig]:
    """Overrides of ``main_ppo``, and the configuration that they make.

    Args:
        first: overrides that all others replace.
        asked: fields of a `PlannedRun`, from options; ``model`` is a name or a path.
        given: overrides, and older options.
        say: is told what an older option stands for.

    Raises:
        ValueError: what contradicts or is unknown, and the remedy.
    """
    fields = dict(asked)
    if "model" in fields:
        fields["model"] = _model_path(fields["model"])
    words = overridden(first, given.overrides)
    older = dict(given.fields)
    if engine := older.pop("engine", None):
        words = overridden(words, [_said(say, given, "engine", overrides({"engine": engine}, engine))[0]])
    engine = engine_of(compose(words))
    words = overridden(words, overrides(fields, engine))
    for field, value in older.items():
        words = overridden(words, _said(say, given, field, overrides({field: value}, engine)))
    config = compose(words)
    if unknown := unknown_settings(config):
        raise ValueError(describe_unknown(unknown[0], config.model_engine))
    if config.actor_rollout_ref.model.path == host_defaults(config.model_engine).actor_rollout_ref.model.path:
        raise ValueError(f"{' '.join(first) or 'this configuration'} names no model; add --model.")
    return words, config


def _said(say: Callable[[str], None], given: Rewritten, field: str, words: list[str]) -> list[str]:
    say(f"{given.options[field]} is written {' '.join(words)}")
    return words


def read_run(config: DictConfig, gpu: Gpu, lengths: Mapping[str, int | None]) -> tuple[PlannedRun, list[str]]:
    """A checked configuration as a `PlannedRun`, and what the plan does not model of it.

    Args:
        config: composed.
        gpu: the device.
        lengths: ``mean_prompt`` and ``mean_response``; None: the longest.

    Raises:
        ValueError: what contradicts.
    """
    return planned_run_from_config(config, gpu, **{name: value for name, value in lengths.items() if value is not None})


def check_run(config: DictConfig) -> list[str]:
    """The validation that a run begins with, this package's and verl's, without its files.

    Returns:
        A sentence for what it would miss of its files here and now.

    Raises:
        ValueError: what it would refuse, in its own words.
    """
    check_types(config)
    config = deepcopy(config)
    if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):  # which plans are for vLLM
        config.actor_rollout_ref.rollout.name = "vllm"
    if not (is_f_divergence(config) or uses_our_loss(config)):
        with_reference = needs_reference(config)
        check_micro_batches_are_set(config, with_reference)
        check_by_verl(config, use_reference_policy=with_reference)
        return []
    with open_dict(config):
        config.trainer.device = None  # whether this machine is set up for it does not matter here
        missing = _fill_in_files(config)
    check_trainer_mode(config)
    check_and_fill_in(config)
    return missing


def refusal(words: list[str]) -> str | None:
    """Return why a run with these overrides would not start, or None."""
    try:
        check_run(compose(words))
    except ValueError as error:
        return str(error)
    return None


def _fill_in_files(config: DictConfig) -> list[str]:
    """Return what is missing of preference files here, and a name in place of none: the data are not read."""
    if config.algorithm.adv_estimator != F_HAL or section_values(config, f"{LOSS}.f_divergence").get("lam") == 0:
        return []
    missing = []
    if not section_values(config, "data.preference").get("files"):
        missing.append("data.preference.files is empty: the run needs preference data, ++data.preference.files=[...].")
        OmegaConf.update(config, "data.preference.files", ["any"], force_add=True)
    wanted = preference_settings(config)
    for name, files in (("files", wanted.files), ("val_files", wanted.val_files)):
        missing += [f"data.preference.{name}: {file} is not on this machine." for file in files if _is_missing(file)]
    return missing


def _is_missing(file: str) -> bool:
    return file.startswith(("/", ".", "~")) and not expanded(file).exists()


def _model_path(model: str) -> str:
    """Return what verl takes for a model: the folder of a local one, the Hub's name of a known one."""
    path = expanded(model)
    if path.exists():
        return str(path if path.is_dir() else path.parent)
    return find_model(model).name
