"""The driver's part of an update: verl's v1 trainers with the numbers that f-GRPO attaches to each row, and with the
preference rows of f-HAL.

``shims/trainer_mode.py`` mixes it in front of each stock trainer, and chooses which of them an instance is of.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.contract import ESTIMATORS, PREFIX
from fgrpo_plugin.host.driver.checkpoints import Checkpoints
from fgrpo_plugin.host.driver.joining import JoiningGroup, join_batch
from fgrpo_plugin.host.driver.liveness import require_living, watching
from fgrpo_plugin.host.driver.log_probs import log_prob_multiple, stage_log_probs
from fgrpo_plugin.host.driver.parts import parts_of
from fgrpo_plugin.host.driver.preference_source import PreferenceSource
from fgrpo_plugin.host.driver.rows import (
    minibatch_of_row,
    on_policy_fields,
    refuse_several_outputs,
    row_numbers,
    row_sums,
)
from fgrpo_plugin.host.driver.run_endings import RunEndings
from fgrpo_plugin.host.driver.run_length import unreached
from fgrpo_plugin.host.driver.stable_order import StableOrder
from fgrpo_plugin.host.driver.step_news import StepNews
from fgrpo_plugin.host.driver.step_times import SlowStepNews
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.host.preference_metrics import held_out_metrics, ranking_metrics
from fgrpo_plugin.host.settings.batches import minibatches_of_update, prompts_of_update
from fgrpo_plugin.host.settings.reading import joins_preferences, read_settings
from fgrpo_plugin.losses import implicit_reward
from fgrpo_plugin.preference.tokens import TokenRow


class FDivergenceTrainer(RunEndings, Checkpoints, StepNews, SlowStepNews, StableOrder):
    """Mixed in front of a verl v1 trainer: attaches a_i, w_i and denominators before the actor update, and joins the
    preference rows of f-HAL to the batch that the actor update alone sees."""

    config: Any
    tokenizer: Any
    processor: Any
    global_steps: int
    steps_per_epoch: int
    total_training_steps: int
    timing_raw: dict
    actor_rollout_wg: Any
    local_trigger_step: int
    parameter_sync_step: int
    preferences: PreferenceSource | None = None
    _held_out: Mapping[str, float] = MappingProxyType({})
    _parts: Mapping[str, Any] = MappingProxyType({})

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
            self.preferences = PreferenceSource(self.config, self.tokenizer)
        super()._init_dataloader()  # type: ignore[misc]
        self._count_steps()
        if self.config.algorithm.adv_estimator in ESTIMATORS:
            epochs = self.config.trainer.total_epochs
            for line in unreached(self.steps_per_epoch, epochs, self.total_training_steps, self.f_divergence):
                say(f"fgrpo-plugin: WARNING: {line}.")

    def _count_steps(self) -> None:
        """Set the steps of an epoch and of the run, where verl's count of prompts does not."""

    def fit(self, agent_loop_manager: Any) -> None:
        self._parts = parts_of(self, agent_loop_manager)
        try:
            with watching(self._parts):
                super().fit(agent_loop_manager)
        finally:
            self.end_step_time()

    def _save_checkpoint(self) -> None:
        require_living(self._parts)  # other prompts may have taken the place of those that a dead part has lost
        super()._save_checkpoint()

    def _validate(self) -> dict[str, float]:
        # Measured after the update: by now the rollout engine has its weights and cache on the same devices again.
        found, self._held_out = self._held_out, {}
        return super()._validate() | dict(found)  # type: ignore[misc]

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        """Attach the numbers of each row, update on the batch with preference rows joined, and divide the sums."""
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
        rows_per_minibatch = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        if len(batch) > minibatches_of_update(self.config) * rows_per_minibatch:
            raise ValueError(
                f"a batch of {len(batch)} rows is more than data.train_batch_size x actor_rollout_ref.rollout.n: some "
                "prompt asks for more responses than rollout.n (__rollout_n__), which would add optimiser steps; lower "
                "it, or raise rollout.n."
            )
        minibatch = minibatch_of_row(len(batch), rows_per_minibatch, self._dp_size())
        numbers, reported = row_numbers(
            rewards=row_sums(data["rm_scores"]).float(),
            uids=uids,
            response_mask=data["response_mask"],
            old_log_prob=data.get("old_log_probs", None),
            minibatch=minibatch,
            padding=torch.from_numpy(padding),
            settings=settings,
            normalize_by_std=bool(self.config.algorithm.get("norm_adv_by_std_in_grpo", True)),
            asked=prompts_of_update(self.config) * self.config.actor_rollout_ref.rollout.n,
        )
        if reported[PREFIX + "absent_share"] > 0:  # the first that is seen of a dead engine or reward worker
            require_living(self._parts)
        if self.preferences is not None:
            numbers |= on_policy_fields(len(batch), self._lam(settings))
        # The returned meta names every field; keep verl's extra_info, which put does not carry over.
        updated = tq.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(numbers, batch_size=len(batch))
        )
        batch.fields = updated.fields

        self._update_joined(batch, metrics, int(minibatch.max()) + 1)
        metrics.update(reported)
        # Where the actor recomputes the old log-probs, verl makes this comparison itself.
        compare = actor.ppo_epochs == 1 and bool(self.config.algorithm.rollout_correction.bypass_mode)
        metrics.update(divide_sums(metrics, settings, lam=self._lam(settings), compare_rollout=compare))
        self._say_what_is_odd(metrics)
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
        if "actor" not in group._dispatch_info:  # verl asks when it balances a batch, which offline has none of
            group._dispatch_info["actor"] = group._query_dispatch_info("actor")
        return max(group._dispatch_info["actor"]) + 1

    def _update_joined(self, batch: Any, metrics: dict, minibatches: int, *, clear: bool = True) -> Any:
        """Update the actor as verl does, with preference rows among those of its batch.

        Args:
            batch: verl's.
            metrics: of the step; filled.
            minibatches: optimiser steps of this update.
            clear: take the preference rows out of verl's queue afterwards.

        Returns:
            The batch that the actor saw.
        """
        if self.preferences is None:
            return super()._update_actor(batch, metrics)  # type: ignore[misc]
        import transfer_queue as tq

        group, seen, keys = self.actor_rollout_wg, batch, []

        def join(batch: Any) -> Any:
            nonlocal seen
            with self._timed("join_preferences"):
                seen, added = self._join(batch, minibatches, metrics)
            keys.extend(added)
            return seen

        self.actor_rollout_wg = JoiningGroup(group, join)
        try:
            super()._update_actor(batch, metrics)  # type: ignore[misc]
        finally:
            self.actor_rollout_wg = group
            if keys and clear:
                tq.kv_clear(keys=keys, partition_id="train")
        return seen

    def _join(self, batch: Any, minibatches: int, metrics: dict) -> tuple[Any, list[str]]:
        """verl's batch with preference rows in every mini-batch of every rank, and the keys of those rows."""
        assert self.preferences is not None
        settings = self.f_divergence
        lam = self._lam(settings)
        drawn = self.preferences.draw(minibatches, self._dp_size())
        rows = [row for minibatch in drawn for rank in minibatch for row in rank]
        reference, hits = self.preferences.reference(rows, self._reference_log_probs)
        joined, keys = join_batch(batch, drawn, reference, settings, lam)
        metrics.update(
            {
                PREFIX + "lam": lam,
                PREFIX + "preference_share": len(rows) / len(joined),
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
        policy = pad_sequence(self._policy_log_probs(rows), batch_first=True)
        lengths = torch.tensor([row.response_length for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
        level = "sequence" if settings.level == "sequence" else "sequence_mean"
        rewards = implicit_reward(policy, pad_sequence(reference, batch_first=True), mask, settings.beta, level=level)
        return held_out_metrics(rows, rewards, settings) | ranking_metrics(rows, policy, mask)

    def _reference_log_probs(self, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
        """log pi_ref of response tokens by verl's own stage, LoRA's switched-off adapter included."""
        return stage_log_probs(
            rows,
            lambda batch: self._compute_ref_log_prob(batch, {}),  # type: ignore[attr-defined]
            "ref_log_prob",
            log_prob_multiple(self.config),
        )

    def _policy_log_probs(self, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
        def compute(batch: Any) -> None:
            temperature = self.config.actor_rollout_ref.rollout.temperature
            batch.extra_info |= {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
            self.actor_rollout_wg.compute_log_prob(batch)

        return stage_log_probs(rows, compute, "log_probs", log_prob_multiple(self.config))

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        from verl.utils.debug import marked_timer

        with marked_timer(name, self.timing_raw):
            yield
