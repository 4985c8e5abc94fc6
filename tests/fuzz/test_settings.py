"""The fuzzer of settings: its own pieces, and every input that once failed."""

import json
import random
from pathlib import Path

import pytest

from tests.fuzz.settings import BASES, OWN, named, run, settings_of

SEEDS = sorted(path for path in (Path(__file__).parent / "seeds_settings").iterdir() if path.is_file())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_settings_that_once_failed_are_accepted_or_refused_by_name(seed):
    run(seed.read_bytes())


@pytest.mark.parametrize("base", BASES)
def test_every_base_is_accepted_as_it_is(base):
    assert run(json.dumps({"base": base, "settings": {}}).encode())


def test_a_refusal_that_names_nothing_and_another_error_are_faults(monkeypatch):
    from fgrpo_plugin.host.settings import switch

    for error in (ValueError("something is wrong with this"), KeyError("data.seed")):

        def complete(config, error=error):
            raise error

        monkeypatch.setattr(switch, "complete", complete)
        with pytest.raises((AssertionError, KeyError)):
            run(json.dumps({"base": "f_grpo", "settings": {}}).encode())


def test_what_is_accepted_and_a_loss_does_not_take_is_a_fault(monkeypatch):
    from fgrpo_plugin.config import FDivergenceConfig

    monkeypatch.setattr(FDivergenceConfig, "lam_at", lambda self, step, total: 1.5)
    with pytest.raises(AssertionError):
        run(json.dumps({"base": "f_hal", "settings": {}}).encode())


def test_bytes_stand_for_settings_of_ours_and_of_verls():
    draw = random.Random(0)
    given = [settings_of(draw.randbytes(40)) for _ in range(300)]
    assert {base for base, _ in given} == set(BASES)
    names = {name for _, some in given for name in some}
    assert names & set(OWN) and names & (set(named()) - set(OWN))
    assert {"trainer.v1.trainer_mode", "data.train_batch_size", "actor_rollout_ref.ref"} <= set(named())
    assert settings_of(b'{"base": "static", "settings": {"data.seed": 1}}') == ("static", {"data.seed": 1})
    assert settings_of(b'{"base": 1}') == settings_of(bytearray(b'{"base": 1}')) and settings_of(b'{"base": 1}')[1]


def test_random_settings_are_accepted_or_refused_by_name():
    """A taste of the fuzzer, without its search."""
    draw = random.Random(4)
    accepted = sum(run(bytes([draw.randrange(123)]) + draw.randbytes(30)) for _ in range(40))
    assert accepted >= 3
