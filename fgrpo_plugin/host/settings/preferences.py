"""The section ``data.preference``: read, and checked against the files and the batch."""

from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.settings.layout import check_micro_batches, data_parallel_size
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.files import read_preferences


def preference_settings(config: Any) -> PreferenceConfig:
    """The section ``data.preference``.

    Raises:
        ValueError: the section is missing, has an unknown key or a bad value; the message names it.
    """
    section = OmegaConf.select(config, "data.preference")
    values: dict[str, Any] = OmegaConf.to_container(section, resolve=True) if section is not None else {}  # type: ignore
    unknown = [name for name in values if name not in PreferenceConfig.__dataclass_fields__]
    if unknown:
        known = ", ".join(PreferenceConfig.__dataclass_fields__)
        raise ValueError(f"data.preference.{unknown[0]} is not known; choose among {known}.")
    try:
        return PreferenceConfig(**values)
    except ValueError as error:
        raise ValueError(f"data.preference.{error}") from error


def check_preferences(config: Any, settings: FDivergenceConfig) -> None:
    """Refuse preference data and batch sizes that cannot be used, before Ray starts.

    Raises:
        ValueError: names the setting and the remedy.
    """
    wanted = preference_settings(config)
    rows, ranks = preference_rows_per_minibatch(config), data_parallel_size(config)
    for name, files, split in (
        ("files", wanted.files, wanted.split),
        ("val_files", wanted.val_files, wanted.val_split),
    ):
        found = read_preferences(files, split=split, on_bad_row=wanted.on_bad_row).rows if files else []
        desirable = sum(row.desirable for row in found)
        scarcer = min(desirable, len(found) - desirable)
        if found and not scarcer:
            raise ValueError(f"data.preference.{name} hold one side alone; both D+ and D- rows are needed.")
        if name == "files" and rows > 2 * scarcer:
            raise ValueError(
                f"data.preference.batch_size={rows} is more than the preference data hold without repetition "
                f"({scarcer} on the scarcer side); set it to {2 * scarcer} or less, or add data."
            )
    if rows % (2 * ranks):
        raise ValueError(
            f"data.preference.batch_size={rows} must be a multiple of {2 * ranks}: as many rows of each side on each "
            f"of {ranks} data-parallel ranks; set it to {max(1, round(rows / 2 / ranks)) * 2 * ranks}."
        )
    check_micro_batches(config, answers=settings.constant_lam != 1, preference_rows=rows)


def preference_rows_per_minibatch(config: Any) -> int:
    """Preference rows of one optimiser step: asked for, or as many as it has on-policy rows."""
    asked = preference_settings(config).batch_size
    return asked or config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
