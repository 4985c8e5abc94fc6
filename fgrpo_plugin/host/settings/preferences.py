"""The section ``data.preference``: read, and checked against the files and the batch."""

from pathlib import Path
from typing import Any

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.settings.batches import check_micro_batches, prompts_of_update
from fgrpo_plugin.host.settings.layout import data_parallel_size
from fgrpo_plugin.host.settings.reading import recomputes_old_log_prob, section_values
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.files import PreferenceData, digests_of, stream_preferences
from fgrpo_plugin.preference.loading import LoadedRows, RowSettings, load_rows
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.template import stop_tokens


def preference_settings(config: Any) -> PreferenceConfig:
    """The section ``data.preference``.

    Raises:
        ValueError: the section is missing, has an unknown key or a bad value; the message names it.
    """
    values = section_values(config, "data.preference")
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
    return load_rows(wanted, held_out, tokenizer, settings, folder, say=say)


def check_preference_batch(config: Any, settings: FDivergenceConfig) -> None:
    """Refuse preference rows of a mini-batch that cannot be assigned to ranks and micro-batches; no file is read.

    Raises:
        ValueError: names the setting and the remedy.
    """
    rows, ranks = preference_rows_per_minibatch(config), data_parallel_size(config)
    if rows % (2 * ranks):
        raise ValueError(
            f"data.preference.batch_size={rows} must be a multiple of {2 * ranks}: as many rows of each side on each "
            f"of {ranks} data-parallel ranks; set it to {max(1, round(rows / 2 / ranks)) * 2 * ranks}."
        )
    check_micro_batches(
        config,
        answers=settings.constant_lam != 1,
        preference_rows=rows,
        recomputes_old_log_prob=recomputes_old_log_prob(settings),
        held_out=bool(preference_settings(config).val_files),
    )


def check_preferences(config: Any, tokenizer: Any) -> None:
    """Refuse preference data that cannot be used, before Ray starts.

    Args:
        config: verl's whole configuration.
        tokenizer: the run's, or None where it is not on this machine: then rows are looked at as text.

    Raises:
        ValueError: names the setting and the remedy.
    """
    wanted, rows = preference_settings(config), preference_rows_per_minibatch(config)
    _check_not_the_same(wanted)
    for name, files in (("files", wanted.files), ("val_files", wanted.val_files)):
        if not files:
            continue
        scarcer = _scarcer_side(config, wanted, tokenizer, held_out=name == "val_files")
        if not scarcer:
            raise ValueError(f"data.preference.{name} hold desirable or undesirable rows alone; both are needed.")
        if name == "files" and rows > 2 * scarcer:
            raise ValueError(
                f"data.preference.batch_size={rows} is more than the preference data hold without repetition "
                f"({scarcer} of the scarcer kind); set it to {2 * scarcer} or less, or add data."
            )


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


def _scarcer_side(config: Any, wanted: PreferenceConfig, tokenizer: Any, *, held_out: bool) -> int:
    """Count the desirable or the undesirable rows, whichever are fewer: in tokens, or as text without a tokenizer here.

    Raises:
        ValueError: pairs are to be kept, and a row has no partner.
    """
    keep_pairs = wanted.keep_pairs and not held_out
    if tokenizer is not None:
        found = load_preference_rows(config, tokenizer, held_out=held_out).rows
        if keep_pairs:
            PreferenceSampler(found, seed=wanted.seed, keep_pairs=True)  # says which row is alone
        desirable = int(found.desirable.sum())
        return min(desirable, len(found) - desirable)
    files, split = (wanted.val_files, wanted.val_split) if held_out else (wanted.files, wanted.split)
    reading: dict[str, Any] = {"split": split, "config": wanted.config, "columns": wanted.columns}
    sides = [0, 0]
    for rows, _ in stream_preferences(files, PreferenceData(), on_bad_row=wanted.on_bad_row, **reading):
        for row in rows:
            sides[row.desirable] += 1
            if keep_pairs and row.pair is None:
                raise ValueError(
                    f"data.preference.keep_pairs=true, but {row.source} is not half of a pair of one desirable and one "
                    "undesirable row; set it to false."
                )
    return min(sides)


def preference_rows_per_minibatch(config: Any) -> int:
    """Preference rows of one optimiser step: asked for, or as many as it has on-policy rows that are no padding."""
    asked = preference_settings(config).batch_size
    prompts = min(config.actor_rollout_ref.actor.ppo_mini_batch_size, prompts_of_update(config))
    return asked or prompts * config.actor_rollout_ref.rollout.n
