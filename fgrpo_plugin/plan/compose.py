"""Compose a recipe, overrides and options into one configuration that verl takes, or say what is wrong with them."""

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fgrpo_plugin.host.settings.batches import check_micro_batches
from fgrpo_plugin.host.settings.compose import compose, describe_unknown, host_defaults, unknown_settings
from fgrpo_plugin.host.settings.reading import is_f_divergence, uses_our_loss
from fgrpo_plugin.host.settings.refusals import check_settings
from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.configuration import engine_of, overridden, overrides
from fgrpo_plugin.plan.planned_run import ENGINES, check_fields


def compose_run(recipe: str | None, changes: Iterable[str], fields: dict[str, Any]) -> tuple[list[str], DictConfig]:
    """Overrides of ``main_ppo``, and the configuration that they make.

    Args:
        recipe: a config group of this package.
        changes: overrides of the host.
        fields: of a `PlannedRun`, from options; ``model`` is a name or a path.

    Raises:
        ValueError: what contradicts or is unknown, and the remedy.
    """
    words = [*([f"+fgrpo={recipe}"] if recipe else []), *changes]
    named = f"--recipe {recipe}" if recipe else "this configuration"
    words, engine = _with_engine(words, fields.get("engine"), named)
    later = {field: value for field, value in fields.items() if field != "engine"}
    check_fields(later, engine)
    if "model" in later:
        later["model"] = _model_path(later["model"])
    words = overridden(words, overrides(later, engine))
    config = compose(words)
    if unknown := unknown_settings(config):
        raise ValueError(describe_unknown(unknown[0], config.model_engine))
    if config.actor_rollout_ref.model.path == host_defaults(config.model_engine).actor_rollout_ref.model.path:
        raise ValueError(f"{named} names no model; add --model.")
    return words, config


def check_run(config: DictConfig) -> list[str]:
    """The validation that a run of this package begins with, without its files.

    Returns:
        A sentence for what it would miss of its files here and now.

    Raises:
        ValueError: what it would refuse, in its own words.
    """
    if not (is_f_divergence(config) or uses_our_loss(config)):
        return []
    anywhere = deepcopy(config)
    anywhere.trainer.device = None  # whether this machine is set up for it does not matter here
    settings = check_settings(anywhere)
    if config.algorithm.adv_estimator == "f_hal" and settings.constant_lam != 0:
        return _check_preferences(config, settings)
    check_micro_batches(config)
    return []


def _check_preferences(config: DictConfig, settings: Any) -> list[str]:
    """Their settings and row counts; the data are not read."""
    from fgrpo_plugin.host.settings.preferences import preference_rows_per_minibatch, preference_settings

    config = deepcopy(config)
    missing = []
    if not OmegaConf.select(config, "data.preference.files"):
        missing.append("data.preference.files is empty: the run needs preference data, +data.preference.files=[...].")
        with open_dict(config):
            OmegaConf.update(config, "data.preference.files", ["any"], force_add=True)
    wanted = preference_settings(config)
    for name, files in (("files", wanted.files), ("val_files", wanted.val_files)):
        missing += [f"data.preference.{name}: {file} is not on this machine." for file in files if _is_missing(file)]
    rows = preference_rows_per_minibatch(config)
    check_micro_batches(config, answers=settings.constant_lam != 1, preference_rows=rows)
    return missing


def _is_missing(file: str) -> bool:
    return file.startswith(("/", ".", "~")) and not Path(file).expanduser().exists()


def _with_engine(words: list[str], asked: str | None, named: str) -> tuple[list[str], str]:
    """The overrides with an engine that was asked for, and the engine that the host then runs."""
    engine = engine_of(compose(words))
    if asked in (None, engine):
        return words, engine
    if asked not in ENGINES:
        raise ValueError(f"--engine {asked} is not one of {', '.join(ENGINES)}.")
    words = [*words, *overrides({"engine": asked}, asked)]
    try:
        engine_of(compose(words))
    except ValueError:
        raise ValueError(
            f"--engine {asked} contradicts {named}, which trains with {engine}; leave --engine out, or start from a "
            f"group of {asked}."
        ) from None
    return words, asked


def _model_path(model: str) -> str:
    """What the host takes for a model: the folder of a local one, the Hub's name of a known one."""
    path = Path(model).expanduser()
    if path.exists():
        return str(path if path.is_dir() else path.parent)
    return find_model(model).name
