"""Deterministic mode: rows in the order of the prompts, whatever the order in which they ended."""

import random
from types import SimpleNamespace

from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from fgrpo_plugin.host.driver.stable_order import StableOrder, row_place
from fgrpo_plugin.host.settings.determinism import MANAGER, OURS

PLACES = {"b": 0, "a-1_x": 1, "c": 2}
IN_ORDER = [f"{uid}_{response}_{output}" for uid in PLACES for response in range(12) for output in range(2)]


def trainer(deterministic, ended):
    """A trainer whose buffer gives the rows as they ended."""

    class Verl:
        def _build_replay_buffer(self):
            return SimpleNamespace(
                sample=lambda **given: (
                    KVBatchMeta(partition_id="train", keys=list(ended), tags=[{}] * len(ended)),
                    given,
                )
            )

    class Trainer(StableOrder, Verl):
        pass

    made = Trainer()
    made.config = OmegaConf.create({})
    if deterministic:
        OmegaConf.update(made.config, MANAGER, OURS, force_add=True)
    made.agent_loop_manager = SimpleNamespace(places=PLACES)
    return made


def test_rows_come_in_the_order_of_prompts_responses_and_outputs():
    ended = random.Random(0).sample(IN_ORDER, len(IN_ORDER))
    batch, given = trainer(True, ended)._build_replay_buffer().sample(batch_size=3)
    assert batch.keys == IN_ORDER and given == {"batch_size": 3}


def test_elsewhere_they_stay_as_verl_gives_them():
    ended = random.Random(0).sample(IN_ORDER, len(IN_ORDER))
    batch, _ = trainer(False, ended)._build_replay_buffer().sample()
    assert batch.keys == ended


def test_numbers_are_compared_as_numbers():
    assert row_place("a-1_x_10_1", PLACES) == (1, 10, 1)
    assert row_place("b_9_0", PLACES) < row_place("b_10_0", PLACES)
