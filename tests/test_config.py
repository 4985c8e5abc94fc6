"""Hyper-parameters of the f-divergence losses: their ranges and defaults, lambda and its schedules."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig


def test_a_constant_lambda_is_the_same_at_every_step():
    settings = FDivergenceConfig(lam=0.3)
    assert settings.constant_lam == 0.3
    assert {settings.lam_at(step, 10) for step in range(1, 11)} == {0.3}


def test_linear_and_cosine_begin_and_end_where_they_are_told():
    for schedule in ("linear", "cosine"):
        settings = FDivergenceConfig(lam={"schedule": schedule, "start": 0.9, "end": 0.1})
        assert settings.constant_lam is None
        assert settings.lam_at(1, 11) == pytest.approx(0.9) and settings.lam_at(11, 11) == pytest.approx(0.1)
        assert settings.lam_at(6, 11) == pytest.approx(0.5)
        assert settings.lam_at(12, 11) == pytest.approx(0.1)
    assert settings.lam_at(3, 11) == pytest.approx(0.9 - 0.8 * (1 - math.cos(math.pi * 0.2)) / 2)
    short = FDivergenceConfig(lam={"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 3})
    assert [short.lam_at(step, 100) for step in (1, 2, 3, 50)] == [0.0, 0.5, 1.0, 1.0]


def test_steps_hold_until_the_next():
    settings = FDivergenceConfig(lam={"schedule": "step", "values": [[1, 0.8], [4, 0.5], [5, 0.0]]})
    assert [settings.lam_at(step, 9) for step in (1, 3, 4, 5, 9)] == [0.8, 0.8, 0.5, 0.0, 0.0]
    assert settings.constant_lam is None  # a schedule keeps both halves alive, whatever its values


@pytest.mark.parametrize(
    "lam, words",
    [
        (1.5, r"lam=1.5 must be a number in \[0, 1\]"),
        ({"schedule": "linear", "start": 0.5, "end": 2}, "lam.end=2"),
        ({"schedule": "linear", "end": 0.5}, "lam.start=None"),
        ({"schedule": "cosine", "start": 0, "end": 1, "steps": 1}, "lam.steps=1"),
        ({"schedule": "sine", "start": 0, "end": 1}, "lam.schedule='sine'"),
        ({"schedule": "step", "values": [[2, 0.5]]}, "lam.values="),
        ({"schedule": "step", "values": [[1, 0.5], [1, 0.2]]}, "lam.values="),
        ({"schedule": "step"}, "lam.values=None"),
        ({"schedule": "step", "values": [[1, 0.5], [3, 1.5]]}, r"lam.values=\[\[1, 0.5\], \[3, 1.5\]\] must be"),
        ({"schedule": "step", "values": [[1.5, 0.5]]}, r"lam.values=\[\[1.5, 0.5\]\] must be"),
        ({"schedule": "step", "values": [[1, 0.8], ["100", 0.5]]}, "lam.values="),
        ({"schedule": "step", "values": [[True, 0.8]]}, "lam.values="),
        ({"schedule": "step", "values": [[1, "0.8"]]}, "lam.values="),
        ({"schedule": "step", "values": [[1, 0.8, 2]]}, "lam.values="),
        ({"schedule": "step", "values": [1, 0.8]}, "lam.values="),
        ({"schedule": "step", "values": []}, "lam.values="),
        ({"schedule": "step", "values": "12"}, "lam.values="),
        ({"schedule": "step", "values": [[3, 0.5], [1, 0.2]]}, "lam.values="),
        ({"schedule": "step", "values": [[1, 0.5]], "start": 0.2}, "lam.start is not read with schedule=step"),
        (
            {"schedule": "linear", "start": 0, "end": 1, "values": [[1, 0.5]]},
            "lam.values is not read with schedule=lin",
        ),
        (
            {"schedule": "linear", "start": 0, "end": 1, "stop": 3},
            "lam.stop is not known; choose among schedule, start",
        ),
        ({"start": 0, "end": 1}, "lam.schedule is missing"),
        ({"schedule": "cosine", "start": 0, "end": 1, "steps": 10.0}, "lam.steps=10.0 must be a whole number >= 2"),
        ("0.5", "lam='0.5' must be"),
        ([0.5], r"lam=\[0.5\] must be"),
    ],
)
def test_bad_lambdas_are_named(lam, words):
    with pytest.raises(ValueError, match=words):
        FDivergenceConfig(lam=lam)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"divergence": "nope"}, "^divergence='nope' is not known; choose among kl, reverse_kl"),
        ({"divergence": "jeffreys", "link": "variational"}, "^divergence='jeffreys' has no link='variational'"),
        ({"divergence": "alpha"}, "alpha=None"),
        ({"divergence": "alpha", "alpha": "0.5"}, "alpha='0.5' must be a number, or null"),
        ({"divergence": None}, "divergence=None must be a name"),
        ({"scale": [1.0, True]}, r"scale=\[1.0, True\] must be"),
        ({"scale": [1.0, 2.0, 3.0]}, r"scale=\[1.0, 2.0, 3.0\] must be one of unit, paper, or two numbers > 0"),
        ({"betta": 0.1}, "betta is not known; choose among preset, divergence"),
        ({"level": "word"}, "level='word'"),
        ({"weighting": "softmin"}, "weighting='softmin'"),
        ({"weight_level": "word"}, "weight_level='word'"),
        ({"old_log_prob": "rollout"}, "old_log_prob='rollout'"),
        ({"beta": 0}, "beta=0 must be"),
        ({"beta": math.inf}, "beta=inf must be"),
        ({"beta": "0.1"}, "beta='0.1' must be"),
        ({"gamma": -0.5}, "gamma=-0.5 must be"),
        ({"gamma": True}, "gamma=True must be"),
        ({"preference_gamma": -1}, "preference_gamma=-1 must be"),
        ({"weight_temperature": 0.0}, "weight_temperature=0.0 must be"),
        ({"weight_cap": 0.5}, "weight_cap=0.5 must be a number >= 1"),
        ({"implicit_reward_clip": 0}, "implicit_reward_clip=0 must be"),
        ({"scale": "big"}, "scale='big'"),
        ({"scale": [1.0]}, r"scale=\[1.0\]"),
        ({"divergence": "kldo"}, "^divergence='kldo': its log-mean-exp couples"),
        ({"divergence": "n" * 500}, "^divergence='n{199} is not known"),
        (
            {"beta": 1e-320},
            r"^beta=9.99989e-321 with gamma=0 and scale=unit makes the scales \[inf, 1\]: .* set beta near 0.1, or",
        ),
        ({"beta": 1e-39}, "beta=1e-39 with gamma=0 and scale=unit"),
        ({"beta": 1e-39, "scale": [1, 1]}, r"beta=1e-39 with gamma=0 and scale=\[1.0, 1.0\]"),
        ({"beta": 1e39, "scale": [1, 1]}, "beta=1e\\+39 with"),
        ({"beta": 1e38, "gamma": 1e38}, r"makes the scales \[5e-39, 1\]"),
        ({"beta": 1e-39, "preset": "paper"}, r"scale=paper makes the scales \[1, 1e\+39\]"),
        (
            {"scale": [1e39, 1]},
            "scale=.* beta, both scales and their product must be in float32's range, 1.2e-38 to 3.4e",
        ),
        ({"scale": [1, 1e-39]}, "must be in float32's range"),
        ({"scale": [1e-30, 1e-30]}, "must be in float32's range"),
        ({"scale": [1e30, 1e30]}, "must be in float32's range"),
        ({"scale": [1.0, 0.0]}, r"scale=\[1.0, 0.0\]"),
    ],
)
def test_bad_settings_of_the_losses_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        FDivergenceConfig(**settings)


def test_what_is_at_the_edge_of_a_range_is_allowed():
    settings = FDivergenceConfig(gamma=0, preference_gamma=0, weight_cap=1, lam=1, scale=(1, 2))
    assert (settings.gamma, settings.weight_cap, settings.constant_lam) == (0, 1, 1.0) and settings.scales() == (1, 2)
    assert FDivergenceConfig(lam={"schedule": "linear", "start": 0, "end": 1, "steps": 2}).lam_at(2, 9) == 1


def test_scales_are_those_that_float32_has():
    from fgrpo_plugin.config import LARGEST, SMALLEST

    assert torch.finfo(torch.float32).tiny == SMALLEST and torch.finfo(torch.float32).max == LARGEST
    for edge in (SMALLEST, LARGEST):
        assert FDivergenceConfig(beta=edge, scale=[1, edge]).scales() == (1, edge)


def test_what_a_preset_filled_in_is_kept_by_replace():
    """As the class says: it cannot be told from what was set, so that another preset takes another construction."""
    settings = FDivergenceConfig(beta=0.2)
    assert replace(settings, preset="paper") == FDivergenceConfig(
        beta=0.2, preset="paper", gamma=0, scale="unit", weight_scale="side", weight_level="token_mean"
    )
    assert replace(settings, beta=0.1) == FDivergenceConfig()
    with pytest.raises(FrozenInstanceError, match="preset"):
        settings.preset = "paper"


def test_the_defaults_are_the_documented_ones():
    """tests/test_docs.py holds the pages against these."""
    settings = FDivergenceConfig()
    assert (settings.weight_temperature, settings.lam, settings.preference_gamma) == (1.0, 0.0, 0.0)
    assert (settings.divergence, settings.beta, settings.level, settings.weighting) == (
        "pearson",
        0.1,
        "sequence",
        "softmax_is",
    )
