"""The section ``data.preference``: read, and checked against the files and the batch."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.settings.layout import check_micro_batches, data_parallel_size
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.files import PreferenceData, digests_of, stream_preferences
from fgrpo_plugin.preference.loading import LoadedRows, RowSettings, load_rows
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER
from fgrpo_plugin.preference.template import stop_tokens


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


def load_preference_rows(config: Any, tokenizer: Any, *, held_out: bool = False) -> LoadedRows:
    """The run's preference rows in tokens, from disk where an earlier start has made them.

    Args:
        config: verl's whole configuration.
        tokenizer: the run's.
        held_out: whether those of `val_files`.

    Raises:
        ValueError: as `load_rows`.
    """
    wanted, data = preference_settings(config), config.data
    model = config.actor_rollout_ref.model
    settings = RowSettings(
        max_prompt_length=data.max_prompt_length,
        max_response_length=data.max_response_length,
        template=dict(data.get("apply_chat_template_kwargs", None) or {}),
        stops=tuple(stop_tokens(model.get("hf_config_path") or model.path)),
    )
    folder = Path(wanted.cache_dir or DEFAULT_FOLDER)
    return load_rows(wanted, held_out, tokenizer, settings, folder, say=lambda line: print(line, flush=True))


def check_preferences(config: Any, settings: FDivergenceConfig, tokenizer: Any) -> None:
    """Refuse preference data and batch sizes that cannot be used, before Ray starts.

    Args:
        config: verl's whole configuration.
        settings: of the loss.
        tokenizer: the run's, or None where it is not on this machine: then rows are looked at as text.

    Raises:
        ValueError: names the setting and the remedy.
    """
    wanted = preference_settings(config)
    _check_not_the_same(wanted)
    rows, ranks = preference_rows_per_minibatch(config), data_parallel_size(config)
    for name, files in (("files", wanted.files), ("val_files", wanted.val_files)):
        if not files:
            continue
        desirable, count = _sides(config, wanted, tokenizer, held_out=name == "val_files")
        scarcer = min(desirable, count - desirable)
        if not scarcer:
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


def _check_not_the_same(wanted: PreferenceConfig) -> None:
    """Refuse files that are trained on and held out under another name."""
    if not wanted.val_files:
        return
    read = digests_of(wanted.files, split=wanted.split, config=wanted.config)
    trained = {digest: file for file, digest in read.items()}
    for file, digest in digests_of(wanted.val_files, split=wanted.val_split, config=wanted.config).items():
        if digest in trained:
            raise ValueError(
                f"data.preference.val_files: {file} has the content of {trained[digest]}, which is trained on; name "
                "held-out data."
            )


def _sides(config: Any, wanted: PreferenceConfig, tokenizer: Any, *, held_out: bool) -> tuple[int, int]:
    """How many rows are desirable, and how many there are: in tokens, or as text where the tokenizer is elsewhere."""
    if tokenizer is not None:
        found = load_preference_rows(config, tokenizer, held_out=held_out).rows
        return int(found.desirable.sum()), len(found)
    files, split = (wanted.val_files, wanted.val_split) if held_out else (wanted.files, wanted.split)
    reading: dict[str, Any] = {"split": split, "config": wanted.config, "columns": wanted.columns}
    sides = [
        row.desirable
        for rows, _ in stream_preferences(files, PreferenceData(), on_bad_row=wanted.on_bad_row, **reading)
        for row in rows
    ]
    return sum(sides), len(sides)


def preference_rows_per_minibatch(config: Any) -> int:
    """Preference rows of one optimiser step: asked for, or as many as it has on-policy rows."""
    asked = preference_settings(config).batch_size
    return asked or config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
