"""The driver's part of an update: verl's v1 trainers with the numbers that f-GRPO attaches to each row, and with the
preference rows of f-HAL.

``shims/trainer_mode.py`` mixes it in front of each stock trainer. Other algorithms still get the stock class.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import wrapt

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import (
    ENGINE_FIELDS,
    ESTIMATORS,
    PREFERENCE_FIELDS,
    PREFIX,
    ROW_FIELDS,
    is_offline,
    joins_preferences,
    read_settings,
    require_validated,
)
from fgrpo_plugin.host.metrics import divide_sums, row_metrics
from fgrpo_plugin.host.preference_metrics import held_out_metrics
from fgrpo_plugin.host.preferences import (
    PreferenceRows,
    as_host_rows,
    host_blocks,
    joined_order,
    log_prob_multiple,
    new_keys,
    on_policy_fields,
    preference_numbers,
)
from fgrpo_plugin.preference.tokens import TokenRow

ROLLOUT_DIFFERENCE_WARNING = 0.05
"""Mean |p_actor - p_rollout| above which the rollouts are probably not from the current weights."""


_BLOCK_ROWS = 256


class FDivergenceTrainer:
    """Mixed in front of a verl v1 trainer: attaches a_i, w_i and denominators before the actor update, and joins the
    preference rows of f-HAL to the batch that the actor update alone sees."""

    stock: type
    offline: type
    config: Any
    tokenizer: Any
    processor: Any
    global_steps: int
    total_training_steps: int
    timing_raw: dict
    actor_rollout_wg: Any
    local_trigger_step: int
    parameter_sync_step: int
    preferences: PreferenceRows | None = None
    _held_out: Mapping[str, float] = MappingProxyType({})

    def __new__(cls, config: Any, *args: Any, **kwargs: Any):
        if config.algorithm.adv_estimator in ESTIMATORS:
            require_validated(config.algorithm)
            if is_offline(config) and "offline" in vars(cls):
                return super().__new__(cls.offline)
        elif "stock" in vars(cls):  # a user's subclass of it stays what it is
            return cls.stock(config, *args, **kwargs)
        return super().__new__(cls)

    @property
    def f_divergence(self) -> FDivergenceConfig:
        return read_settings(self.config.actor_rollout_ref.actor.policy_loss.f_divergence)

    def _init_dataloader(self) -> None:
        # Before any worker starts: a row that cannot be used must end the run here.
        if joins_preferences(self.config):
            if self.processor is not None:
                raise ValueError(
                    "algorithm.adv_estimator=f_hal takes preference rows of text alone, and this model has an image "
                    "processor; use a text model, or algorithm.adv_estimator=f_grpo."
                )
            self.preferences = PreferenceRows(self.config, self.tokenizer)
        super()._init_dataloader()  # type: ignore[misc]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # type: ignore[misc]
        if self.preferences is None or self.global_steps == 0:
            return
        trainer = self.config.trainer
        by_path = trainer.resume_mode == "resume_path"
        self.preferences.load(Path(trainer.resume_from_path) if by_path else self._checkpoint_folder())

    def _save_checkpoint(self) -> None:
        # Before the host's own: its tracker file, written last, then never names a checkpoint without this state.
        if self.preferences is not None:
            self.preferences.save(self._checkpoint_folder())
        super()._save_checkpoint()  # type: ignore[misc]

    def _checkpoint_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"

    def _validate(self) -> dict[str, float]:
        # Measured after the update: by now the rollout engine has its weights and cache on the same devices again.
        found, self._held_out = self._held_out, {}
        return super()._validate() | dict(found)  # type: ignore[misc]

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        if self.config.algorithm.adv_estimator not in ESTIMATORS:
            return super()._update_actor(batch, metrics)  # type: ignore[misc]
        import transfer_queue as tq
        from tensordict import TensorDict

        settings = self.f_divergence
        refuse_several_outputs(batch.keys)
        fields = ["uid", "response_mask", "rm_scores"]
        if settings.weighting == "softmax_is":
            fields.append("old_log_probs")
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        padding = np.array([bool(tag.get("is_padding", False)) for tag in batch.tags])
        uids = np.array(data.pop("uid").tolist(), dtype=object)

        actor = self.config.actor_rollout_ref.actor
        minibatch = minibatch_of_row(
            rows=len(batch),
            rows_per_minibatch=actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n,
            dp_size=self._dp_size(),
        )
        rows, row_metrics = row_numbers(
            rewards=row_sums(data["rm_scores"]).float(),
            uids=uids,
            response_mask=data["response_mask"],
            old_log_prob=data.get("old_log_probs", None),
            minibatch=minibatch,
            padding=torch.from_numpy(padding),
            settings=settings,
            normalize_by_std=bool(self.config.algorithm.get("norm_adv_by_std_in_grpo", True)),
        )
        if self.preferences is not None:
            rows |= on_policy_fields(len(batch), self._lam(settings))
        # The returned meta names every field; keep the host's extra_info, which put does not carry over.
        updated = tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(rows, batch_size=len(batch))
        )
        batch.fields = updated.fields

        with self._joining(int(minibatch.max()) + 1, metrics):
            batch = super()._update_actor(batch, metrics)  # type: ignore[misc]
        metrics.update(row_metrics)
        # Where the actor recomputes the old log-probs, the host makes this comparison itself.
        compare = actor.ppo_epochs == 1 and bool(self.config.algorithm.rollout_correction.bypass_mode)
        metrics.update(divide_sums(metrics, settings, lam=self._lam(settings), compare_rollout=compare))
        difference = metrics.get("training/rollout_probs_diff_mean", 0.0)
        if difference > ROLLOUT_DIFFERENCE_WARNING:
            print(
                f"fgrpo-plugin: WARNING: step {self.global_steps}: mean |p_actor - p_rollout| is {difference:.3f}; "
                "the rollout engine may hold stale weights or another precision.",
                flush=True,
            )
        if self._validates_after_this_update():
            self._held_out = self._held_out_preferences()
        return batch

    def _validates_after_this_update(self) -> bool:
        if self.local_trigger_step < self.parameter_sync_step - 1:  # further updates belong to this step
            return False
        every = self.config.trainer.test_freq
        return every > 0 and (self.global_steps >= self.total_training_steps or self.global_steps % every == 0)

    def _lam(self, settings: FDivergenceConfig) -> float:
        return settings.lam_at(self.global_steps, self.total_training_steps)

    def _dp_size(self) -> int:
        group = self.actor_rollout_wg
        if "actor" not in group._dispatch_info:  # the host asks when it balances a batch, which offline has none of
            group._dispatch_info["actor"] = group._query_dispatch_info("actor")
        return max(group._dispatch_info["actor"]) + 1

    @contextlib.contextmanager
    def _joining(self, minibatches: int, metrics: dict, *, clear: bool = True) -> Iterator[list[Any]]:
        """While it lasts, the actor is updated on the host's batch with preference rows among its own.

        Yields a list that then holds the batch the actor saw. ``clear`` takes the preference rows out of the queue.
        """
        if self.preferences is None:
            yield []
            return
        import transfer_queue as tq

        group, keys, seen = self.actor_rollout_wg, [], []

        def join(batch: Any) -> Any:
            with self._timed("join_preferences"):
                joined, added = self._join(batch, minibatches, metrics)
            keys.extend(added)
            seen.append(joined)
            return joined

        self.actor_rollout_wg = _JoiningGroup(group, join)
        try:
            yield seen
        finally:
            self.actor_rollout_wg = group
            if keys and clear:
                tq.kv_clear(keys=keys, partition_id="train")

    def _join(self, batch: Any, minibatches: int, metrics: dict) -> tuple[Any, list[str]]:
        """The host's batch with preference rows in every mini-batch of every rank, and the keys of those rows."""
        import transfer_queue as tq
        from tensordict import TensorDict
        from transfer_queue import KVBatchMeta

        assert self.preferences is not None
        settings, dp_size = self.f_divergence, self._dp_size()
        lam = self._lam(settings)
        drawn = self.preferences.draw(minibatches, dp_size)
        rows = [row for minibatch in drawn for rank in minibatch for row in rank]
        reference, hits = self.preferences.reference(rows, self._reference_log_probs)
        parts = [preference_numbers([row for rank in part for row in rank], settings, lam) for part in drawn]
        numbers = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        keys = new_keys(len(rows))
        tags = [{"seq_len": len(row.ids)} for row in rows]
        for block, fields in host_blocks(rows, reference, numbers):
            fields = TensorDict(fields, batch_size=len(keys[block]))
            tq.kv_batch_put(keys=keys[block], partition_id="train", fields=fields, tags=tags[block])
        per_rank = self.preferences.batch_size // dp_size
        order = joined_order(len(batch), minibatches, dp_size, per_rank)
        sources = {"on": (batch.keys, batch.tags), "off": (keys, tags)}
        joined = KVBatchMeta(
            keys=[sources[kind][0][index] for kind, index in order],
            tags=[sources[kind][1][index] for kind, index in order],
            partition_id="train",
            fields=[*ENGINE_FIELDS, *ROW_FIELDS, *PREFERENCE_FIELDS],
            extra_info=batch.extra_info | {"mini_batch_size": len(order) // minibatches},
        )
        metrics.update(
            {
                PREFIX + "lam": lam,
                PREFIX + "preference_share": len(rows) / len(order),
                PREFIX + "preference_cache_hits": hits,
                PREFIX + "preference_epochs": self.preferences.sampler.epochs(),
            }
        )
        return joined, keys

    def _held_out_preferences(self) -> dict[str, float]:
        if self.preferences is None or not self.preferences.held_out:
            return {}
        rows = self.preferences.held_out
        settings = self.f_divergence
        reference, _ = self.preferences.reference(rows, self._reference_log_probs)
        policy = self._policy_log_probs(rows)
        rewards = torch.tensor([float((p - r).sum()) for p, r in zip(policy, reference, strict=True)])
        if settings.level != "sequence":
            rewards = rewards / torch.tensor([row.response_length for row in rows])
        return held_out_metrics(rows, settings.beta * rewards, settings)

    def _reference_log_probs(self, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
        """log pi_ref of response tokens by the host's own stage, LoRA's switched-off adapter included."""
        return self._log_probs(rows, lambda batch: self._compute_ref_log_prob(batch, {}), "ref_log_prob")  # type: ignore[attr-defined]

    def _policy_log_probs(self, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
        def compute(batch: Any) -> None:
            temperature = self.config.actor_rollout_ref.rollout.temperature
            batch.extra_info |= {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
            self.actor_rollout_wg.compute_log_prob(batch)

        return self._log_probs(rows, compute, "log_probs")

    def _log_probs(self, rows: Sequence[TokenRow], compute: Callable[[Any], Any], field: str) -> list[torch.Tensor]:
        """What a stage of the host writes for these rows: (T,) float32 nats for each row's response tokens."""
        import transfer_queue as tq
        from tensordict import TensorDict
        from verl.workers.utils.padding import response_from_nested

        # The host takes whole micro-batches on every rank: the last rows are repeated.
        multiple = log_prob_multiple(self.config)
        rows = list(rows)
        padded = rows + [rows[-1]] * (-len(rows) % multiple)
        keys = new_keys(len(padded))
        tags = [{"seq_len": len(row.ids)} for row in padded]
        fields = TensorDict(as_host_rows(padded), batch_size=len(padded))
        batch = tq.kv_batch_put(keys=keys, partition_id="preference", fields=fields, tags=tags)
        try:
            compute(batch)
            select = [field, "response_mask"]
            data = tq.kv_batch_get(keys=keys, partition_id="preference", select_fields=select)
        finally:
            tq.kv_clear(keys=keys, partition_id="preference")
        values = data[field]
        if field == "log_probs":  # over the whole sequence, as the engine gives them
            values = response_from_nested(values, data["response_mask"])
        return [row.float() for row in values.unbind()][: len(rows)]

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        from verl.utils.debug import marked_timer

        with marked_timer(name, self.timing_raw):
            yield


class _JoiningGroup(wrapt.ObjectProxy):
    """The actor's workers, which are given another batch to be updated on than the host's."""

    def __init__(self, group: Any, join: Callable[[Any], Any]):
        super().__init__(group)
        self._self_join = join

    def update_actor(self, batch: Any) -> Any:
        return self.__wrapped__.update_actor(self._self_join(batch))


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


def row_sums(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of each row's (unmasked) values, (n,) float64.

    Args:
        values: (n, T), or nested as the host's queue returns it, one component a row; it is not padded here, which
            would write it once more.
        mask: of the same form, in {0, 1}; what is masked may be anything.
    """
    (flat, offsets), kept = _flat(values), None if mask is None else _flat(mask)[0]
    sums = []
    # A block of rows at a time, so that what lies between stays in the cache, and fresh memory is not asked for.
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
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What f-GRPO attaches to each row, and what the driver alone can say about it.

    Args:
        rewards: (n,) R_i.
        uids: (n,) prompt of each row.
        response_mask: (n, T) in {0, 1}, or nested.
        old_log_prob: as the mask, log-probs of the policy that sampled, nats; needed by ``softmax_is`` only.
        minibatch: (n,) index of each row's mini-batch.
        padding: (n,) bool, rows that the host added to fill a mini-batch.
        settings: FDivergenceConfig.
        normalize_by_std: divide the advantage by the group's standard deviation.

    Returns:
        ``ROW_FIELDS``, each (n,) float32, and a dict of metrics.
    """
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
        advantage, weight, (tokens > 0) & ~padding, settings
    )
