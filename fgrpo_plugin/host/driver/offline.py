"""lambda = 1: preference data alone, in verl's synchronous trainer without prompts and without a rollout engine."""

from typing import Any

from torch.utils.data import Dataset

from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
from fgrpo_plugin.host.metrics import divide_sums


class OfflineTrainer(FDivergenceTrainer):
    """Mixed in front of ``FDivergenceTrainer`` and verl's synchronous trainer where lambda is 1 throughout."""

    @property
    def _enable_hybrid_replicas(self) -> bool:
        """Read by verl: whether a rollout engine shares the actor's devices."""
        return bool(self.config.data.preference.get("keep_rollout", False))

    def on_init_end(self) -> None:
        if self._enable_hybrid_replicas:
            super().on_init_end()  # type: ignore[misc]

    def on_step_end(self) -> None:
        if self._enable_hybrid_replicas:
            super().on_step_end()  # type: ignore[misc]

    def _count_steps(self) -> None:
        assert self.preferences is not None
        # An epoch is one pass over the scarcer kind of rows; verl counted the steps of its prompts.
        self.steps_per_epoch = max(1, len(self.preferences.sampler) // self._rows_per_step())
        trainer = self.config.trainer
        self.total_training_steps = trainer.total_training_steps or self.steps_per_epoch * trainer.total_epochs
        self.config.actor_rollout_ref.actor.optim.total_training_steps = self.total_training_steps

    def _validate(self) -> dict[str, float]:
        if self._enable_hybrid_replicas:
            return super()._validate()
        return self._held_out_preferences()

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        """One update on preference rows; nothing is sampled."""
        from transfer_queue import KVBatchMeta
        from verl.utils.debug import marked_timer

        self.local_trigger_step = self.parameter_sync_step - 1  # one update a step
        if self._enable_hybrid_replicas:
            self.on_sample_end()  # type: ignore[attr-defined]  # puts the rollout engine to sleep
        batch = KVBatchMeta(partition_id="train")
        with marked_timer("update_actor", timing_raw, color="red"):
            return self._update_actor(batch, metrics)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        seen = self._update_joined(batch, metrics, self._minibatches(), clear=False)
        metrics.update(divide_sums(metrics, self.f_divergence, lam=1.0, compare_rollout=False))
        if self._enable_hybrid_replicas and self._validates_after_this_update():
            self._held_out = self._held_out_preferences()
        return seen  # which verl takes out of the queue when it has logged the step

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        metrics.update({f"timing_s/{name}": seconds for name, seconds in timing_raw.items()})

    def _minibatches(self) -> int:
        return max(1, self.config.data.train_batch_size // self.config.actor_rollout_ref.actor.ppo_mini_batch_size)

    def _rows_per_step(self) -> int:
        assert self.preferences is not None
        return self.preferences.batch_size * self._minibatches()


class NoPrompts(Dataset):
    """verl's training and validation set where there are no prompts: as long as one batch, never read."""

    def __init__(self, data_files: Any, tokenizer: Any, config: Any, **kwargs: Any):
        self._length = int(config.train_batch_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise IndexError("with lam=1 there are no prompts to train on")


class NoRollouts:
    """verl's agent loop manager where nothing is rolled out."""

    @classmethod
    def create(cls, **kwargs: Any) -> "NoRollouts":
        return cls()

    def generate_sequences(self, prompts: Any) -> None:
        raise RuntimeError("with lam=1 nothing is rolled out")
