"""What the watch makes of each answer that Ray can give for a part; no Ray runs."""

import threading
from types import SimpleNamespace

import pytest
import ray
from ray import exceptions

from fgrpo_plugin.host.driver import liveness
from fgrpo_plugin.host.driver.parts import engine_failure

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

            def call(function):
                assert function is engine_failure
                return _call(ask())

            return SimpleNamespace(
                __ray_ready__=SimpleNamespace(remote=lambda: _call(ask())), __ray_call__=SimpleNamespace(remote=call)
            )

        return {name: part(name) for name in answers}

    class _call:  # a dict's key
        def __init__(self, given):
            self.answer = given.answer

    def get(call):
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

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


def _telling(parts, sentence):
    """A reward worker that lives, and tells of a bad reward."""
    part = parts.make(reward=[None] * 9)["reward"]
    part.fgrpo_bad_reward = SimpleNamespace(remote=lambda: _Told(sentence))
    return part


class _Told:
    answer = None

    def __init__(self, sentence):
        self.sentence = sentence


@pytest.mark.parametrize("patience", [float("inf"), 5.0])
def test_a_reward_worker_that_has_met_a_bad_reward_ends_the_run_with_its_sentence(parts, monkeypatch, patience):
    get = ray.get
    monkeypatch.setattr(ray, "get", lambda call: call.sentence if isinstance(call, _Told) else get(call))
    made = parts.make(lives=[None] * 9) | {"reward": _telling(parts, "data_source='a': no number")}
    assert liveness._first_death(made, 0.01, parts.done, patience=patience) == "data_source='a': no number"


def test_one_that_has_died_before_it_could_tell_is_a_death(parts, monkeypatch):
    get = ray.get

    def died(call):
        if isinstance(call, _Told):
            raise exceptions.ActorDiedError()
        return get(call)

    monkeypatch.setattr(ray, "get", died)
    part = _telling(parts, "")
    made = {"reward": part, **parts.make(dies=[None, exceptions.ActorDiedError(), *[None] * 9])}
    assert "dies has died" in liveness._first_death(made, 0.01, parts.done)


def test_one_that_says_nothing_is_asked_once_and_does_not_hold_the_watch(parts, monkeypatch):
    asked = []
    part = parts.make(reward=[None, None])["reward"]
    part.fgrpo_bad_reward = SimpleNamespace(remote=lambda: asked.append(1) or _Told(""))
    monkeypatch.setattr(ray, "wait", lambda calls, **given: ([c for c in calls if not isinstance(c, _Told)], []))
    assert liveness._first_death({"reward": part}, 0.01, parts.done) is None and asked == [1]


def test_an_engine_that_has_died_under_a_server_that_lives_ends_the_run(parts):
    dead = "EngineCore encountered\nan issue"
    made = parts.make(**{"actor worker 0": [None] * 9, "rollout server 1": [None, None, dead, *[None] * 9]})
    assert liveness._first_death(made, 0.01, parts.done) == (
        "the engine of rollout server 1 has died, and the run ends here (EngineCore encountered an issue)."
    )
