"""The driver's part of an update: verl's v1 trainers with the numbers that f-GRPO attaches to each row.

``shims/trainer_mode.py`` mixes it in front of each stock trainer. Other algorithms still get the stock class.
"""

import math
from typing import Any

import numpy as np
import torch

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.divergences import Divergence
from fgrpo_plugin.host.config import LOSS_MODES, read_settings
from fgrpo_plugin.host.policy_loss import PREFIX, ROW_FIELDS, SUMS
from fgrpo_plugin.host.validate import require_validated

ROLLOUT_DIFFERENCE_WARNING = 0.05
"""Mean |p_actor - p_rollout| above which the rollouts are probably not from the current weights."""


class FDivergenceTrainer:
    """Mixed in front of a verl v1 trainer: attaches a_i, w_i and denominators before the actor update."""

    stock: type
    config: Any
    global_steps: int
    actor_rollout_wg: Any

    def __new__(cls, config: Any, *args: Any, **kwargs: Any):
        if config.algorithm.adv_estimator in LOSS_MODES:
            require_validated(config.algorithm)
        elif "stock" in vars(cls):  # a user's subclass of it stays what it is
            return cls.stock(config, *args, **kwargs)
        return super().__new__(cls)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        if self.config.algorithm.adv_estimator not in LOSS_MODES:
            return super()._update_actor(batch, metrics)  # type: ignore[misc]
        import transfer_queue as tq
        from tensordict import TensorDict

        settings = read_settings(self.config.actor_rollout_ref.actor.policy_loss.f_divergence)
        refuse_several_outputs(batch.keys)
        fields = ["uid", "response_mask", "rm_scores"]
        if settings.weighting == "softmax_is":
            fields.append("old_log_probs")
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        padding = np.array([bool(tag.get("is_padding", False)) for tag in batch.tags])
        uids = np.array(data.pop("uid").tolist(), dtype=object)
        data = data.to_padded_tensor()

        actor = self.config.actor_rollout_ref.actor
        minibatch = minibatch_of_row(
            rows=len(batch),
            rows_per_minibatch=actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n,
            dp_size=max(self.actor_rollout_wg._dispatch_info["actor"]) + 1,
        )
        rows, row_metrics = row_numbers(
            rewards=data["rm_scores"].sum(dim=-1),
            uids=uids,
            response_mask=data["response_mask"],
            old_log_prob=data.get("old_log_probs", None),
            minibatch=minibatch,
            padding=torch.from_numpy(padding),
            settings=settings,
            normalize_by_std=bool(self.config.algorithm.get("norm_adv_by_std_in_grpo", True)),
        )
        # The returned meta names every field; keep the host's extra_info, which put does not carry over.
        updated = tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(rows, batch_size=len(batch))
        )
        batch.fields = updated.fields

        batch = super()._update_actor(batch, metrics)  # type: ignore[misc]
        metrics.update(row_metrics)
        # Where the actor recomputes the old log-probs, the host makes this comparison itself.
        compare = actor.ppo_epochs == 1 and bool(self.config.algorithm.rollout_correction.bypass_mode)
        metrics.update(divide_sums(metrics, settings.build_divergence(), compare_rollout=compare))
        difference = metrics.get("training/rollout_probs_diff_mean", 0.0)
        if difference > ROLLOUT_DIFFERENCE_WARNING:
            print(
                f"fgrpo-plugin: WARNING: step {self.global_steps}: mean |p_actor - p_rollout| is {difference:.3f}; "
                "the rollout engine may hold stale weights or another precision.",
                flush=True,
            )
        return batch


def refuse_several_outputs(keys: list[str]) -> None:
    """Raise where an agent loop returned several outputs in one session: f-GRPO takes one row an answer.

    Args:
        keys: the host's row keys, ``{uid}_{session}_{output}``.
    """
    for key in keys:
        if not key.startswith("pad") and key.rsplit("_", 1)[-1] != "0":
            raise ValueError(
                f"row {key!r} is a further output of one agent session; f_grpo supports one output a session, so use "
                "an agent loop that returns one, or algorithm.adv_estimator=grpo."
            )


def minibatch_of_row(rows: int, rows_per_minibatch: int, dp_size: int) -> torch.Tensor:
    """(rows,) index of the mini-batch in which the host trains each row.

    The host gives every rank a contiguous share and walks through it in order (``actor.shuffle`` is refused), so row p
    of rank p // share belongs to mini-batch (p mod share) // (rows_per_minibatch / dp_size).
    """
    share = rows // dp_size
    return (torch.arange(rows) % share) // (rows_per_minibatch // dp_size)


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
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What f-GRPO attaches to each row, and what the driver alone can say about it.

    Args:
        rewards: (n,) R_i.
        uids: (n,) prompt of each row.
        response_mask: (n, T) in {0, 1}.
        old_log_prob: (n, T) log-probs of the policy that sampled, nats; needed by ``softmax_is`` only.
        minibatch: (n,) index of each row's mini-batch.
        padding: (n,) bool, rows that the host added to fill a mini-batch.
        settings: FDivergenceConfig.
        normalize_by_std: divide the advantage by the group's standard deviation.

    Returns:
        ``ROW_FIELDS``, each (n,) float32, and a dict of metrics.
    """
    advantage = group_advantages(rewards.float(), uids, normalize_by_std=normalize_by_std)
    weight = group_weights(
        rewards.float(),
        uids,
        mode=settings.weighting,
        old_log_prob=old_log_prob,
        response_mask=response_mask if old_log_prob is not None else None,
        weight_cap=settings.weight_cap,
        weight_temperature=settings.weight_temperature,
        old_log_prob_level=settings.weight_level,
    )
    tokens = response_mask.sum(dim=-1)
    # Normalisation: rows (tokens at level token) with an unmasked token, over the whole mini-batch.
    share = (tokens if settings.level == "token" else (tokens > 0)).double()
    count = torch.zeros(int(minibatch.max()) + 1, dtype=torch.float64).index_add_(0, minibatch, share)
    fields = dict(zip(ROW_FIELDS, (advantage, weight, count[minibatch].clamp(min=1), (minibatch == 0)), strict=True))
    return {name: values.float() for name, values in fields.items()}, _row_metrics(
        advantage, weight, (tokens > 0) & ~padding, settings
    )


def _row_metrics(advantage: torch.Tensor, weight: torch.Tensor, counted: torch.Tensor, settings: Any) -> dict:
    rows = max(int(counted.sum()), 1)
    used = counted & (advantage != 0)
    weights = weight[used].double()
    capped = 0.0
    if settings.weight_cap is not None and len(weights):
        capped = (weights >= settings.weight_cap * (1 - 1e-6)).double().mean().item()
    size = weights.sum().square() / weights.square().sum() / len(weights) if len(weights) else torch.tensor(0.0)
    return {
        PREFIX + "zero_advantage_share": (counted & (advantage == 0)).sum().item() / rows,
        PREFIX + "aligned_share": (counted & (advantage > 0)).sum().item() / rows,
        PREFIX + "weight_effective_sample_share": float(size),
        PREFIX + "weight_capped_share": capped,
    }


def divide_sums(metrics: dict, divergence: Divergence, *, compare_rollout: bool) -> dict[str, float]:
    """Turn the workers' sums into means; the sums are removed from ``metrics``.

    The host averages what a mini-batch's micro-batches report with equal weight. A ratio of two such averages is the
    ratio of the two totals, whatever the sizes of the micro-batches. Several mini-batches are averaged once more, so
    there the ratio is one of totals only where each has as many micro-batches as the others.

    Args:
        metrics: the step's metrics after the host's reduction.
        divergence: whose estimate is reported.
        compare_rollout: report the difference between actor and rollout probabilities (meaningless once rows have
            been trained on, that is with several epochs).

    Raises:
        RuntimeError: the workers reported no f-GRPO sums: another loss has run.
    """
    sums = {name.removeprefix(SUMS): metrics.pop(name) for name in list(metrics) if name.startswith(SUMS)}
    if not sums:
        raise RuntimeError(
            "the actor was updated by another loss than 'f_grpo' (its metrics are missing); "
            "remove what replaces actor.policy_loss.loss_mode or the worker's loss function."
        )

    def mean(total: str, of: str) -> float:
        return float(sums[total] / sums[of]) if sums[of] else math.nan

    aligned, unaligned = mean("aligned_reward", "aligned_rows"), mean("unaligned_reward", "unaligned_rows")
    estimate = mean("aligned_link", "aligned_weight") - mean("unaligned_conjugate", "unaligned_weight")
    means = {
        PREFIX + "implicit_reward": mean("reward", "rows"),
        PREFIX + "implicit_reward_aligned": aligned,
        PREFIX + "implicit_reward_unaligned": unaligned,
        PREFIX + "implicit_reward_margin": aligned - unaligned,
        PREFIX + "divergence_estimate": estimate + divergence.estimate_offset,
        PREFIX + "clipped_share": mean("clipped", "rows"),
        PREFIX + "reference_gap": mean("reference_gap", "tokens"),
    }
    if compare_rollout:
        means.update(_rollout_difference(sums))
    return {name: value for name, value in means.items() if math.isfinite(value)}


def _rollout_difference(sums: dict[str, float]) -> dict[str, float]:
    """The host's names for its own stale-weight check, whose forward pass f-GRPO saves."""
    tokens = sums["compared_tokens"]
    if not tokens:
        return {}

    def mean(name: str) -> float:
        return float(sums[name] / tokens)

    difference = mean("difference")
    covariance = mean("product") - mean("actor") * mean("rollout")
    spread = math.sqrt(
        max(mean("actor_squared") - mean("actor") ** 2, 0.0) * max(mean("rollout_squared") - mean("rollout") ** 2, 0.0)
    )
    return {
        PREFIX + "rollout_gap": mean("rollout_gap"),
        "training/rollout_probs_diff_mean": difference,
        "training/rollout_probs_diff_std": math.sqrt(max(mean("difference_squared") - difference**2, 0.0)),
        "training/rollout_actor_probs_pearson_corr": covariance / spread if spread > 0 else math.nan,
    }
