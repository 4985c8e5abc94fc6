"""Rows of a step: how many verl makes of them, and whether they are whole micro-batches on every rank."""

import math
from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.host.settings.layout import data_parallel_size, reference_is_in_actor, sequence_ranks

ROWS = ("actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.rollout.n")
PASSES = {
    "actor": ("ppo_micro_batch_size", "ppo_max_token_len", "use_dynamic_bsz"),
    "ref": ("log_prob_micro_batch_size", "log_prob_max_token_len", "log_prob_use_dynamic_bsz"),
    "rollout": ("log_prob_micro_batch_size", "log_prob_max_token_len", "log_prob_use_dynamic_bsz"),
}
"""Section -> its settings of micro-batches: rows, tokens (both a GPU), and which of the two counts. That of the rollout
is for log-probs that the actor computes without training."""


def prompts_of_update(config: Any) -> int:
    """Prompts of which the rows of one update are made.

    Raises:
        ValueError: a training step is no whole number of updates.
    """
    mode, batch = config.trainer.v1.trainer_mode, config.data.train_batch_size
    updates = OmegaConf.select(config, f"trainer.v1.{mode}.parameter_sync_step", default=1)
    if not isinstance(updates, int) or updates < 1 or batch % updates:
        raise ValueError(
            f"data.train_batch_size={batch} is no multiple of trainer.v1.{mode}.parameter_sync_step={updates}, the "
            "updates of a training step; change one of them."
        )
    return batch // updates


def minibatches_of_update(config: Any) -> int:
    """Optimiser steps of one update (an epoch of it); verl repeats rows until the last one is whole."""
    return math.ceil(prompts_of_update(config) / config.actor_rollout_ref.actor.ppo_mini_batch_size)


def check_micro_batches(
    config: Any,
    answers: bool = True,
    preference_rows: int = 0,
    recomputes_old_log_prob: bool = False,
    held_out: bool = False,
) -> None:
    """Refuse rows that do not make whole micro-batches on every rank, or do not fit into one.

    verl finds either in its first step, after Ray, the models and a rollout.

    Args:
        config: verl's configuration.
        answers: whether rolled-out rows are trained on.
        preference_rows: rows that f-HAL joins to a mini-batch.
        recomputes_old_log_prob: whether the actor computes log pi_old of the rolled-out rows.
        held_out: whether it computes log-probs of held-out preference rows.

    Raises:
        ValueError: names the settings and the remedy.
    """
    parts, ranks = config.actor_rollout_ref, data_parallel_size(config)
    mini_batch = parts.actor.ppo_mini_batch_size * parts.rollout.n if answers else 0
    if mini_batch % ranks:
        raise ValueError(
            f"{ROWS[0]} x {ROWS[1]} makes {mini_batch} rows, no multiple of the {ranks} data-parallel ranks that "
            "share a mini-batch; change one of them."
        )
    if bool(parts.actor.use_dynamic_bsz) != bool(parts.rollout.log_prob_use_dynamic_bsz):
        raise ValueError(
            f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={parts.rollout.log_prob_use_dynamic_bsz} differs from "
            f"actor_rollout_ref.actor.use_dynamic_bsz={parts.actor.use_dynamic_bsz}: verl's worker takes one for both; "
            "remove the former."
        )
    rolled_out = f"{ROWS[0]} x {ROWS[1]}" * answers
    joined = f"data.preference.batch_size={preference_rows}" if preference_rows else ""
    whole, in_actor = minibatches_of_update(config) * mini_batch, reference_is_in_actor(config)
    # Rows of each section's passes, None where it has none; preference rows that nothing trains on are filled up.
    of_actor = whole if in_actor or recomputes_old_log_prob else 0 if held_out else None
    _check_part(config, "actor", mini_batch + preference_rows, " + ".join(filter(None, (rolled_out, joined))))
    _check_part(config, "rollout", of_actor, f"data.train_batch_size x {ROWS[1]}")
    if not in_actor:
        _check_part(config, "ref", whole, f"data.train_batch_size x {ROWS[1]}")


def _check_part(config: Any, part: str, rows: int | None, what: str) -> None:
    """One section's micro-batches: that there are any, and that rows, if it has a pass, make whole ones."""
    at, section = f"actor_rollout_ref.{part}", config.actor_rollout_ref[part]
    engine = "ref" if part == "ref" else "actor"
    ranks, along = data_parallel_size(config, engine), sequence_ranks(config, engine)
    micro_batch, tokens, dynamic = PASSES[part]
    size, limit, old = (section.get(name) for name in (f"{micro_batch}_per_gpu", f"{tokens}_per_gpu", micro_batch))
    each = (rows or 0) // ranks
    if section.get(dynamic):
        longest = config.data.max_prompt_length + config.data.max_response_length
        _require_count(f"{at}.{tokens}_per_gpu", limit, "the tokens of a dynamic micro-batch")
        if rows is not None and limit * along < longest:
            raise ValueError(
                f"{at}.{tokens}_per_gpu={limit} does not hold the longest row, data.max_prompt_length + "
                f"data.max_response_length = {longest}, on {along} rank(s) along the sequence; change one of them."
            )
        return
    if old is not None:
        most = min(max(1, old // ranks), max(1, each)) if isinstance(old, int) else 1
        right = next(count for count in range(most, 0, -1) if each % count == 0)
        raise ValueError(
            f"{at}.{micro_batch}={old} is an old key of verl, which counts rows of all GPUs and which its workers no "
            f"longer read; set {at}.{micro_batch}_per_gpu={right} in its place."
        )
    _require_count(f"{at}.{micro_batch}_per_gpu", size, f"the rows of a micro-batch, unless {at}.{dynamic}=true")
    if each % size:
        raise ValueError(
            f"{what} makes {rows} rows on {ranks} data-parallel ranks, no multiple of "
            f"{at}.{micro_batch}_per_gpu={size} on each; change either, or set {at}.{dynamic}=true."
        )


def _require_count(name: str, value: Any, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value} must be a whole number above 0: {what}.")
