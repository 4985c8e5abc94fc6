"""A slow step is said once, and never ended."""

import time

import pytest

from fgrpo_plugin.host.driver import step_times
from fgrpo_plugin.host.driver.step_times import SlowStepNews, say_slow, slow_after


@pytest.mark.parametrize(
    "seconds, limit",
    [([], None), ([1.0, 1.0], None), ([1.0, 2.0, 3.0], 60.0), ([600.0, 90.0, 580.0, 620.0], 5 * 590.0)],
)
def test_slow_is_relative_to_the_median(seconds, limit):
    assert slow_after(seconds) == limit


class Verl:
    hooks: list

    def on_step_begin(self):
        self.hooks.append("begin")

    def on_validate_begin(self):
        self.hooks.append("validate")


class Trainer(SlowStepNews, Verl):
    def __init__(self):
        self.hooks, self.global_steps = [], 0

    def step(self, seconds, validate=0.0):
        self.global_steps += 1
        self.on_step_begin()
        time.sleep(seconds)
        if validate:
            self.on_validate_begin()
            time.sleep(validate)


@pytest.fixture
def in_a_moment(monkeypatch):
    monkeypatch.setattr(step_times, "LEAST_SECONDS", 0.3)


@pytest.mark.usefixtures("in_a_moment")
def test_a_step_that_takes_much_longer_than_those_before_is_said_while_it_lasts(capsys):
    trainer = Trainer()
    for _ in range(3):
        trainer.step(0.01)
    assert capsys.readouterr().out == ""
    trainer.step(0.6)
    assert capsys.readouterr().out.count("WARNING: step 4 has taken 0 s so far, where the median is 0 s") == 1
    trainer.end_step_time()
    assert [round(seconds, 1) for seconds in trainer._seconds()] == [0.0, 0.0, 0.0, 0.6]
    assert trainer.hooks == ["begin"] * 4


@pytest.mark.usefixtures("in_a_moment")
def test_validation_and_the_end_of_the_run_belong_to_no_step(capsys):
    trainer = Trainer()
    trainer.on_validate_begin()  # before training
    for _ in range(4):
        trainer.step(0.01, validate=0.4)
    trainer.step(0.01)
    trainer.end_step_time()
    time.sleep(0.5)
    assert capsys.readouterr().out == ""
    assert len(trainer._seconds()) == 5 and max(trainer._seconds()) < 0.3


def test_the_sentence_names_step_and_seconds(capsys):
    say_slow(7, 2950.0, 590.0)
    said = capsys.readouterr().out
    assert "step 7 has taken 2950 s so far, where the median is 590 s; it goes on, and would end" in said
