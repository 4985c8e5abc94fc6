"""Says when verl's dynamic sampling goes through all training prompts and does not find a step's groups."""

from typing import Any

from fgrpo_plugin.foreign_text import say


class RefillNews:
    """Mixed in front of a verl trainer: with `algorithm.filter_groups`, verl draws further prompts until enough groups
    have unequal rewards; where none has, that goes on without end and without a word."""

    config: Any
    global_steps: int
    train_dataset: Any
    _refilled: tuple[int, int] = (-1, 0)
    """A step, and the prompts that it has drawn in place of others."""

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        filtering = self.config.algorithm.filter_groups
        if filtering.enable:
            step, before = self._refilled
            before = before if step == self.global_steps else 0
            drawn, prompts = before + num_prompts, len(self.train_dataset)
            self._refilled = self.global_steps, drawn
            if drawn // prompts > before // prompts:
                say(
                    f"fgrpo-plugin: WARNING: step {self.global_steps} has drawn {drawn} prompts in place of groups "
                    f"with equal {filtering.metric}: every training prompt {drawn // prompts} times. It goes on; the "
                    "prompts are too easy or too hard for the model."
                )
        return super()._add_prompts_to_generate(num_prompts)  # type: ignore[misc]
