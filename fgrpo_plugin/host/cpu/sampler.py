"""verl's replay buffer with a poll interval for small models: `trainer.v1.sampler.custom_sampler` names it."""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

# The host looks for finished rollouts every 2 s, longer than a whole step of a small model.
_POLL_SECONDS = 0.05


class FastPollReplayBuffer(ReplayBuffer):
    """verl's `ReplayBuffer` with a poll interval for small models."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("poll_interval", _POLL_SECONDS)
        super().__init__(*args, **kwargs)
