"""Deterministic mode: each response is drawn with a seed of (seed, step, training or validation, place of the prompt in
its batch, number of the response); verl would give all requests of a step one seed and one name.
"""

import hashlib
from typing import Any

import ray
import torch
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

SESSIONS = 2**20
"""More responses than a prompt has: a request's number is place x SESSIONS + response."""


def seed_of(seed: int, step: int, validate: bool, place: int, response: int) -> int:
    """Return the seed of one response, below 2**31, a hash of what names it in a run."""
    name = f"{seed} {step} {'val' if validate else 'train'} {place} {response}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % 2**31


class SeededAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):
    """verl's agent loop worker, each response with a seed and a request's name of its own."""

    # Ray sends an inherited method by value, in which `super()` is no longer that of this class.
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        place, response = int(kwargs["priority"]), int(kwargs["session_id"])
        seed = seed_of(
            self.config.actor_rollout_ref.rollout.seed, trajectory["step"], trajectory["validate"], place, response
        )
        # verl's agent loops make the request's name of its priority; vLLM heeds that only if told to.
        kwargs["priority"] = place * SESSIONS + response
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's agent loop manager, which numbers the prompts of a batch.

    Chosen by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SeededAgentLoopWorker)
        self.places: dict[str, int] = {}
        """uid -> place of the prompt in the batch that was sent last."""

    def generate_sequences(self, prompts: Any) -> None:
        self.places = {str(uid): place for place, uid in enumerate(prompts["uid"])}
        prompts["priority"] = torch.arange(len(prompts))
        super().generate_sequences(prompts)
