"""Dynamic sampling that finds no group to train on says so."""

from types import SimpleNamespace

import pytest

from fgrpo_plugin.host.driver.refills import RefillNews


class Verl:
    """The part that draws: what it is asked for is kept."""

    def _add_prompts_to_generate(self, num_prompts):
        self.drawn.append(num_prompts)
        return num_prompts


class Trainer(RefillNews, Verl):
    def __init__(self, filtering):
        groups = SimpleNamespace(enable=filtering, metric="acc")
        self.config = SimpleNamespace(algorithm=SimpleNamespace(filter_groups=groups))
        self.train_dataset, self.global_steps, self.drawn = range(10), 1, []


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
    from verl.trainer.ppo.v1 import get_trainer_cls

    order = [base.__name__ for base in get_trainer_cls(mode).__mro__ if "_add_prompts_to_generate" in vars(base)]
    assert order[0] == "RefillNews" and order[-1] == "PPOTrainer"
