"""What a run is started on: model, prompts and preferences of its task, or ``DATA=file``, the user's own prompts."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fgrpo_plugin import tables
from fgrpo_plugin.host.settings.inputs import check_data_file, load_tokenizer
from fgrpo_plugin.host.settings.prompts import row_problem
from fgrpo_plugin.host.settings.rewards import reward_problem
from fgrpo_plugin.quickstart import task

COLUMNS = ("prompt", "data_source", "reward_model")
BATCH, GROUP, MICRO_BATCH = 24, 8, 64  # as in conf/fgrpo/quickstart.yaml; a step's rows must be whole micro-batches
MICRO_BATCHED = ("actor.ppo", "ref.log_prob", "rollout.log_prob")
HELDOUT_ONE_IN = 10
HELDOUT_MOST = 256
RESPONSE_TOKENS = 64


@dataclass(frozen=True)
class UserData:
    """Rows of both splits, and verl's settings that follow from them."""

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class RunInputs:
    """What verl is started on."""

    model: Path
    train: Path
    heldout: Path
    overrides: tuple[str, ...]


def addition_inputs(run: Path, model: Path) -> RunInputs:
    """Write the prompts of two-digit addition, and name their reward."""
    return _sums(run, model, _reward("task", "compute_score"))


def hybrid_inputs(run: Path, model: Path) -> RunInputs:
    """The hybrid task: the same sums, the flawed proxy for a reward, and truthful preferences."""
    from fgrpo_plugin.quickstart import hybrid

    preferences = hybrid.write_preference_file(run / "data" / "preferences.parquet")
    overrides = (
        *_reward("hybrid", "proxy_reward"),
        f"data.preference.files=[{preferences}]",
        f"data.preference.cache_dir={run / 'reference_cache'}",
    )
    return _sums(run, model, overrides)


def user_inputs(run: Path, model: Path, data: UserData) -> RunInputs:
    """Write both splits of the user's own rows."""
    return RunInputs(
        model=model,
        train=task.write_parquet(data.train, run / "data" / "train.parquet"),
        heldout=task.write_parquet(data.heldout, run / "data" / "heldout.parquet"),
        overrides=data.overrides,
    )


def _sums(run: Path, model: Path, overrides: tuple[str, ...]) -> RunInputs:
    train, _ = task.split_pairs()
    rows, heldout = task.verl_rows(train, "train"), task.verl_rows(task.heldout_sample(), "heldout")
    return user_inputs(run, model, UserData(rows, heldout, overrides))


def _reward(module: str, function: str) -> tuple[str, ...]:
    return (
        f"reward.custom_reward_function.path=pkg://fgrpo_plugin.quickstart.{module}",
        f"reward.custom_reward_function.name={function}",
    )


def prepare_user_data(path: Path, model: Path | None, overrides: Sequence[str] = ()) -> UserData:
    """Read, check and split the rows: every tenth is held out (at most 256).

    Args:
        path: ``.parquet``, ``.jsonl`` or ``.json`` with the columns that verl reads.
        model: whose tokenizer measures the prompts; None is the quick start's own.
        overrides: the user's own settings for verl; a reward function among them replaces verl's default.

    Raises:
        ValueError: one sentence that names DATA, the row where there is one, and the remedy.
    """
    check_data_file(path, COLUMNS, "DATA")
    rows = _read(path)
    tokenizer = _tokenizer(model)
    render = functools.partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    custom = any("custom_reward_function.path" in override for override in overrides)
    for number, row in enumerate(rows):
        problem = row_problem(row, "prompt", render) or reward_problem(row, custom=custom)
        if problem is not None:
            raise ValueError(f"DATA={path}: row {number}: {problem}.")
    try:
        pa.Table.from_pylist(rows)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"DATA={path}: rows differ in the type of a column ({reason}); make it one type.") from None
    if len(rows) < 4:
        raise ValueError(f"DATA={path}: {len(rows)} rows are too few to train on and hold some out; give at least 4.")
    heldout = rows[::HELDOUT_ONE_IN][:HELDOUT_MOST]
    train = [
        row for number, row in enumerate(rows) if number % HELDOUT_ONE_IN or number // HELDOUT_ONE_IN >= HELDOUT_MOST
    ]
    prompt_tokens = _longest_prompt(rows, tokenizer, tiny=model is None)
    batch = min(BATCH, len(train))
    micro_batch = GROUP * max(part for part in range(1, MICRO_BATCH // GROUP + 1) if batch % part == 0)
    return UserData(
        train=train,
        heldout=heldout,
        overrides=(
            f"data.train_batch_size={batch}",
            *(f"actor_rollout_ref.{name}_micro_batch_size_per_gpu={micro_batch}" for name in MICRO_BATCHED),
            f"data.max_prompt_length={prompt_tokens}",
            f"data.max_response_length={RESPONSE_TOKENS}",
            f"actor_rollout_ref.rollout.max_model_len={prompt_tokens + RESPONSE_TOKENS}",
            f"actor_rollout_ref.rollout.max_num_batched_tokens={max(8192, prompt_tokens + RESPONSE_TOKENS)}",
        ),
    )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return tables.rows(path)
    except ValueError as reason:
        raise ValueError(f"DATA={path}: cannot be read ({reason}); correct that row.") from None


def _tokenizer(model: Path | None) -> Any:
    if model is None:
        from fgrpo_plugin.quickstart.model import build_tokenizer

        return build_tokenizer()
    return load_tokenizer(model, "MODEL")


def _longest_prompt(rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, tiny: bool) -> int:
    texts = [tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows]
    longest = max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    if tiny and longest + RESPONSE_TOKENS > tokenizer.model_max_length:
        raise ValueError(
            f"DATA: the longest prompt has {longest} bytes, too many for the tiny model (512 with the response); "
            "shorten it or name a model of your own in MODEL."
        )
    return longest
