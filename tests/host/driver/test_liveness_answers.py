"""What the watch makes of each answer that Ray can give for a part; no Ray runs."""

import threading
from types import SimpleNamespace

import pytest
import ray
from ray import exceptions

from fgrpo_plugin.host.driver import liveness
from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer

UNAVAILABLE = exceptions.ActorUnavailableError("the connection broke", None)
OTHER = exceptions.GetTimeoutError("late")


@pytest.fixture
def parts(monkeypatch):
    """Parts that give the answers of their lists one after the other; the watch ends with the last."""
    done, asked = threading.Event(), []

    def make(**answers):
        def part(name):
            def ask():
                asked.append(name)
                found = answers[name].pop(0)
                if not any(answers.values()):
                    done.set()
                return SimpleNamespace(answer=found)

            return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: _call(ask())))

        return {name: part(name) for name in answers}

    class _call:  # a dict's key
        def __init__(self, given):
            self.answer = given.answer

    def get(call):
        if call.answer is not None:
            raise call.answer

    monkeypatch.setattr(ray, "wait", lambda calls, **settings: (calls, []))
    monkeypatch.setattr(ray, "get", get)
    return SimpleNamespace(make=make, done=done, asked=asked)


@pytest.mark.parametrize("answer", [UNAVAILABLE, OTHER])
def test_a_part_that_cannot_be_reached_for_a_while_has_not_died(parts, answer):
    made = parts.make(lives=[None, answer, answer, None, None, None])
    assert liveness._first_death(made, 0.01, parts.done) is None
    assert len(parts.asked) == 6


@pytest.mark.parametrize(
    "answer",
    [
        exceptions.ActorDiedError(),
        exceptions.ActorPlacementGroupRemoved(),
        exceptions.ActorUnschedulableError("its node is gone"),
        exceptions.RuntimeEnvSetupError("no such package"),
    ],
)
def test_one_that_can_never_answer_has(parts, answer):
    made = parts.make(lives=[None] * 9, dies=[None, UNAVAILABLE, answer, *[None] * 9])
    assert "dies has died, and the run ends here" in liveness._first_death(made, 0.01, parts.done)


def test_after_an_error_each_is_asked_once_but_those_that_cannot_be_reached(parts):
    made = parts.make(lives=[None, None], dies=[UNAVAILABLE, exceptions.ActorDiedError(), None])
    assert "dies has died" in liveness._first_death(made, 0.0, parts.done, patience=5.0)
    assert parts.asked == ["lives", "dies", "dies"]


def test_the_servers_of_a_reward_model_are_watched_and_its_workers_where_they_wait_for_generation():
    def several(name, count=2):
        return [f"{name}{number}" for number in range(count)]

    trainer = FDivergenceTrainer()
    trainer.actor_rollout_wg = SimpleNamespace(workers=several("actor"))
    trainer.ref_policy_wg = trainer.actor_rollout_wg
    trainer.llm_server_manager = SimpleNamespace(get_replicas=lambda: [SimpleNamespace(servers=several("server"))])
    judges = [SimpleNamespace(servers=[f"judge{number}"]) for number in range(2)]
    trainer.reward_loop_manager = SimpleNamespace(
        reward_loop_worker_handles=None,
        reward_loop_workers=several("reward"),
        reward_model_manager=SimpleNamespace(rollout_replicas=judges),
    )
    watched = trainer._parts(SimpleNamespace(agent_loop_workers=several("loop")))
    names = ["actor worker", "rollout server", "agent loop worker", "reward loop worker", "reward model server"]
    assert set(watched) == {f"{name} {number}" for name in names for number in range(2)}
    assert watched["reward model server 1"] == "judge1" and watched["actor worker 0"] == "actor0"
    trainer.reward_loop_manager.reward_model_manager = None  # without a model
    assert not any("model" in name for name in trainer._parts(None))
