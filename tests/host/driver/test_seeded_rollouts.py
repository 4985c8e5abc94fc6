"""Deterministic mode: every response of a run has a seed and a request's name of its own, the same in every run."""

import asyncio
import itertools
from types import SimpleNamespace

import numpy as np
import ray
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

from fgrpo_plugin.host.driver.seeded_rollouts import (
    SESSIONS,
    SeededAgentLoopManager,
    SeededAgentLoopWorker,
    seed_of,
)


def test_the_seed_is_that_of_the_run_step_prompt_and_response():
    # blake2b of "7 3 train 5 2" in four bytes, modulo 2**31
    assert seed_of(7, 3, False, 5, 2) == seed_of(7, 3, False, 5, 2) == 886765568
    several = itertools.product((0, 1), (1, 2, 12), (False, True), (0, 1, 21), (0, 1, 2))
    seeds = [seed_of(*names) for names in several]
    assert len(set(seeds)) == len(seeds) and 0 <= min(seeds) < 2**26 < 2**30 < max(seeds) < 2**31


def run(worker, **kwargs):
    trajectory = {"step": kwargs.pop("step", 3), "validate": kwargs.pop("validate", False)}
    return asyncio.run(worker._run_agent_loop({"temperature": 1.0}, trajectory, agent_name="single", **kwargs))


def test_each_response_of_a_prompt_is_asked_for_with_its_own_seed_and_number(monkeypatch):
    async def asked(self, sampling_params, trajectory, **kwargs):
        return sampling_params, kwargs["priority"], kwargs["agent_name"]

    monkeypatch.setattr(AgentLoopWorker, "_run_agent_loop", asked)
    worker = SeededAgentLoopWorker.__new__(SeededAgentLoopWorker)
    worker.config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(seed=7)))
    shared = {"priority": torch.tensor(5)}
    found = [run(worker, session_id=response, **shared) for response in range(3)]
    assert [params["seed"] for params, _, _ in found] == [seed_of(7, 3, False, 5, response) for response in range(3)]
    assert [priority for _, priority, _ in found] == [5 * SESSIONS + response for response in range(3)]
    assert found[0][0]["temperature"] == 1.0 and found[0][2] == "single"
    validated, _, _ = run(worker, session_id=0, validate=True, **shared)
    assert validated["seed"] == seed_of(7, 3, True, 5, 0)


def test_prompts_are_numbered_in_the_order_in_which_they_are_sent(monkeypatch):
    sent = []
    monkeypatch.setattr(AgentLoopManagerTQ, "generate_sequences", lambda self, prompts: sent.append(prompts))
    manager = SeededAgentLoopManager.__new__(SeededAgentLoopManager)
    for uids in (["x", "y", "z"], ["w"]):
        manager.generate_sequences(tu.get_tensordict({"uid": np.array(uids, dtype=object)}))
        assert manager.places == {uid: place for place, uid in enumerate(uids)}
        assert sent[-1]["priority"].tolist() == list(range(len(uids)))


def test_the_manager_starts_workers_that_seed(monkeypatch):
    monkeypatch.setattr(AgentLoopManagerTQ.__mro__[1], "__init__", lambda self, *args, **kwargs: None)
    manager = SeededAgentLoopManager()
    assert manager.agent_loop_workers_class.__ray_actor_class__ is SeededAgentLoopWorker
    # Ray sends what the class itself defines by its name; whatever it inherits and calls super() would break.
    assert "__init__" in vars(SeededAgentLoopWorker) and isinstance(
        manager.agent_loop_workers_class, ray.actor.ActorClass
    )
