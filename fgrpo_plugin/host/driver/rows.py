"""What the driver attaches to each on-policy row before the actor is updated, and in which mini-batch the row is."""

from typing import Any

import numpy as np
import torch

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.host.contract import PREFERENCE_FIELDS, ROW_FIELDS
from fgrpo_plugin.host.metrics import row_metrics
from fgrpo_plugin.host.settings.rewards import LARGEST_REWARD, unusable_reward

_BLOCK_ROWS = 256


def refuse_several_outputs(keys: list[str]) -> None:
    """Raise where an agent loop returned several outputs in one session: f-GRPO takes one row a response.

    Args:
        keys: verl's row keys, ``{uid}_{session}_{output}``.
    """
    for key in keys:
        if not key.startswith("pad") and key.rsplit("_", 1)[-1] != "0":
            raise ValueError(
                f"row {key!r} is a further output of one agent session; f_grpo supports one output a session, so use "
                "an agent loop that returns one, or algorithm.adv_estimator=grpo."
            )


def minibatch_of_row(rows: int, rows_per_minibatch: int, dp_size: int) -> torch.Tensor:
    """(rows,) index of the mini-batch in which verl trains each row.

    verl assigns every rank a contiguous chunk and walks through it in order (``actor.shuffle`` is refused), so row p
    of rank p // chunk belongs to mini-batch (p mod chunk) // (rows_per_minibatch / dp_size).
    """
    chunk = rows // dp_size
    return (torch.arange(rows) % chunk) // (rows_per_minibatch // dp_size)


def row_sums(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of each row's (unmasked) values, (n,) float64.

    Args:
        values: (n, T), or nested as verl's queue returns it, one component a row; it is not padded here, which
            would write it once more.
        mask: of the same form, in {0, 1}; what is masked may be anything.
    """
    (flat, offsets), kept = _flat(values), None if mask is None else _flat(mask)[0]
    sums = []
    # A chunk of rows at a time, so that what lies between stays in the cache, and fresh memory is not asked for.
    for start in range(0, len(offsets) - 1, _BLOCK_ROWS):
        ends = offsets[start : start + _BLOCK_ROWS + 1]
        block = flat[ends[0] : ends[-1]]
        if kept is not None:
            block = torch.where(kept[ends[0] : ends[-1]].bool(), block, 0)
        sums.append(torch.segment_reduce(block.double(), "sum", offsets=ends - ends[0]))
    return torch.cat(sums)


def _flat(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of all rows one after another, and where each row begins and the last ends."""
    if values.is_nested:
        return values.values(), values.offsets()  # type: ignore[attr-defined]
    return values.flatten(), torch.arange(len(values) + 1) * values.shape[-1]


def row_numbers(
    *,
    rewards: torch.Tensor,
    uids: np.ndarray,
    response_mask: torch.Tensor,
    old_log_prob: torch.Tensor | None,
    minibatch: torch.Tensor,
    padding: torch.Tensor,
    settings: Any,
    normalize_by_std: bool,
    asked: int | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return what f-GRPO attaches to each row, and what the driver alone can say about it.

    Args:
        rewards: (n,) R_i.
        uids: (n,) prompt of each row.
        response_mask: (n, T) in {0, 1}, or nested.
        old_log_prob: as the mask, log-probs of the policy that sampled, nats; needed by ``softmax_is`` only.
        minibatch: (n,) index of each row's mini-batch.
        padding: (n,) bool, rows that verl added to fill a mini-batch.
        settings: FDivergenceConfig.
        normalize_by_std: divide the advantage by the group's standard deviation.

        asked: responses that the prompts of the update were to get; None: as many as there are rows.

    Returns:
        ``ROW_FIELDS``, each (n,) float32, and a dict of metrics.

    Raises:
        ValueError: a reward that no advantage can be made of; names its prompt.
    """
    # What an agent loop of the user's own gives as reward; the others are refused in worker/rewards.py.
    for row in (~(rewards.abs() <= LARGEST_REWARD)).nonzero().flatten().tolist()[:1]:
        raise ValueError(
            f"a response to prompt {uids[row]} has the reward {float(rewards[row])}, which "
            f"{unusable_reward(float(rewards[row]))}; correct what gives it, in the agent loop or the reward model."
        )
    advantage = group_advantages(rewards.float(), uids, normalize_by_std=normalize_by_std)
    tokens = row_sums(response_mask)
    if old_log_prob is not None:
        # One token a row, whose log-prob is the sum or the mean of the row's: all that the weights read of it.
        old_log_prob = row_sums(old_log_prob, response_mask)
        if settings.weight_level == "token_mean":
            old_log_prob /= tokens.clamp(min=1)
        old_log_prob = old_log_prob.unsqueeze(-1)
    weight = group_weights(
        rewards.float(),
        uids,
        mode=settings.weighting,
        old_log_prob=old_log_prob,
        response_mask=(tokens > 0).unsqueeze(-1),
        weight_cap=settings.weight_cap,
        weight_temperature=settings.weight_temperature,
        old_log_prob_level=settings.weight_level,
        weight_scale=settings.weight_scale,
    )
    # Normalisation: rows (tokens at level token) with an unmasked token, over the whole mini-batch.
    share = (tokens if settings.level == "token" else (tokens > 0)).double()
    count = torch.zeros(int(minibatch.max()) + 1, dtype=torch.float64).index_add_(0, minibatch, share)
    fields = dict(zip(ROW_FIELDS, (advantage, weight, count[minibatch].clamp(min=1), (minibatch == 0)), strict=True))
    return {name: values.float() for name, values in fields.items()}, row_metrics(
        advantage, weight, (tokens > 0) & ~padding, settings, asked
    )


def on_policy_fields(rows: int, lam: float) -> dict[str, torch.Tensor]:
    """``PREFERENCE_FIELDS`` of on-policy rows, (n,) float32 each."""
    return dict(zip(PREFERENCE_FIELDS, (torch.zeros(rows), torch.zeros(rows), torch.full((rows,), lam)), strict=True))
