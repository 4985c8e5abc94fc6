"""Dynamic sampling that finds no group to train on says so."""

from types import SimpleNamespace

import pytest

from fgrpo_plugin.host.driver.refills import RefillNews


class Trainer(RefillNews):
    """verl's part: what it is asked for is kept."""

    def __new__(cls, *given):
        drawn: list[int] = []
        base = type("Verl", (), {"_add_prompts_to_generate": lambda self, number: drawn.append(number) or number})
        trainer = object.__new__(type("Both", (RefillNews, base), {}))
        groups = SimpleNamespace(enable=given[0], metric="acc")
        trainer.config = SimpleNamespace(algorithm=SimpleNamespace(filter_groups=groups))
        trainer.train_dataset, trainer.global_steps, trainer.drawn = range(10), 1, drawn
        return trainer


def said(trainer, capsys, *numbers):
    found = []
    for number in numbers:
        assert trainer._add_prompts_to_generate(number) == number
        found.append(capsys.readouterr().out.count("WARNING"))
    return found


def test_each_pass_over_the_training_prompts_in_one_step_is_said_once(capsys):
    trainer = Trainer(True)
    assert said(trainer, capsys, 9, 1, 9, 1, 25, 4, 1) == [0, 1, 0, 1, 1, 0, 1]
    assert trainer.drawn == [9, 1, 9, 1, 25, 4, 1]
    trainer._add_prompts_to_generate(10)
    assert "step 1 has drawn 60 prompts in place of groups with equal acc: every training prompt 6 times" in (
        capsys.readouterr().out
    )


def test_a_new_step_begins_to_count_anew(capsys):
    trainer = Trainer(True)
    assert said(trainer, capsys, 9) == [0]
    trainer.global_steps = 2
    assert said(trainer, capsys, 9, 1) == [0, 1]


def test_without_dynamic_sampling_nothing_is_said(capsys):
    assert said(Trainer(False), capsys, 100) == [0]


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_every_mode_of_verl_draws_through_it(mode):
    import verl.trainer.ppo.v1  # noqa: F401
    from verl.trainer.ppo.v1 import get_trainer_cls

    cls = get_trainer_cls(mode)
    order = [base.__name__ for base in cls.__mro__ if "_add_prompts_to_generate" in vars(base)]
    assert order[0] == "RefillNews" and order[-1] == "PPOTrainer"
