"""The presets: what each is, the paper's weights by a loop, and that `paper` and `released` begin with one gradient."""

import math
from dataclasses import asdict

import pytest
import torch

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.config import PRESETS, FDivergenceConfig
from fgrpo_plugin.divergences import available_divergences, get_divergence
from fgrpo_plugin.losses import clip_implicit_reward, f_grpo_loss, f_hal_loss, fdo_loss, implicit_reward

ALPHAS = (-1.0, 0.5, 3.0)
LEVELS = ("sequence", "sequence_mean", "token")
LENGTHS = torch.tensor([3, 5, 1, 6, 2, 4, 6, 3, 5, 2, 1, 4])
GROUPS = ["a"] * 4 + ["b"] * 5 + ["c"] * 3  # c has no signal
REWARDS = torch.tensor([0.0, 1.0, 0.5, 1.0, 2.0, -1.0, 0.5, 0.5, 0.0, 1.0, 1.0, 1.0])


def every_link():
    for name in available_divergences():
        for alpha in ALPHAS if name == "alpha" else (None,):
            for link in ("variational", "density_ratio"):
                try:
                    get_divergence(name, link, **({} if alpha is None else {"alpha": alpha}))
                except ValueError:
                    continue
                yield name, link, alpha


def rows(dtype):
    """log pi (requires grad) != log pi_ref, mask; nats."""
    draw = torch.Generator().manual_seed(5)
    mask = torch.arange(6) < LENGTHS.unsqueeze(-1)
    log_prob, reference = (-2 * torch.rand(12, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    return log_prob.to(dtype).requires_grad_(), reference.to(dtype), mask


def minimised(settings, log_prob, reference, mask, lam):
    """s_all (lambda L_FDO + (1 - lambda) s_on L_fGRPO) on fresh rollouts, pi_old = pi_theta, labelled as well."""
    divergence, (s_all, s_on) = settings.build_divergence(), settings.scales()
    old = log_prob.detach()

    def reward(gamma):
        found = implicit_reward(
            log_prob, reference, mask, settings.beta, old_log_prob=old, gamma=gamma, level=settings.level
        )
        return clip_implicit_reward(found, divergence)[0]

    weights = group_weights(
        REWARDS.to(log_prob.dtype),
        GROUPS,
        settings.weighting,
        old,
        mask,
        old_log_prob_level=settings.weight_level,
        weight_scale=settings.weight_scale,
    )
    advantages = group_advantages(REWARDS.to(log_prob.dtype), GROUPS)
    on_policy = f_grpo_loss(reward(settings.gamma), advantages, divergence, weights, response_mask=mask)
    preference = fdo_loss(reward(0.0), torch.arange(12) % 2 == 0, divergence, response_mask=mask)
    return s_all * f_hal_loss(preference, s_on * on_policy, lam)


def test_each_preset_is_the_complete_setting_of_the_specification():
    expected = {  # beta 0.1: (gamma, s_all, s_on, weight_scale, weight_level)
        "stable": (0.0, 10.0, 1.0, "side", "token_mean"),
        "paper": (0.0, 1.0, 11.0, "group", "sequence"),
        "released": (1.0, 1.0, 1.0, "group", "sequence"),
    }
    assert FDivergenceConfig().preset == "stable" and PRESETS.keys() == expected.keys()
    for preset, values in expected.items():
        settings = FDivergenceConfig(preset=preset)
        found = (settings.gamma, *settings.scales(), settings.weight_scale, settings.weight_level)
        assert found == (values[0], pytest.approx(values[1]), pytest.approx(values[2]), *values[3:])
        assert settings.weighting == "softmax_is" and settings.beta == 0.1 and settings.level == "sequence"
        # What the validation writes into the configuration is read back as the same settings.
        assert FDivergenceConfig(**asdict(settings)) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_each_part_of_a_preset_can_be_overridden(preset):
    others = {"gamma": 0.5, "scale": [2.0, 3.0], "weight_scale": "side", "weight_level": "token_mean"}
    if preset == "stable":
        others |= {"weight_scale": "group", "weight_level": "sequence"}
    for name, value in others.items():
        settings = FDivergenceConfig(preset=preset, **{name: value})
        assert getattr(settings, name) == value
        assert all(getattr(settings, key) == kept for key, kept in PRESETS[preset].items() if key != name)
    assert FDivergenceConfig(scale=[2.0, 3.0]).scales() == (2.0, 3.0)
    assert FDivergenceConfig(preset="released", gamma=0.0).scales() == (1.0, pytest.approx(11.0))


@pytest.mark.parametrize(
    "beta, gamma, unit, paper", [(0.1, 0.0, 10, 11), (0.1, 1.0, 1 / 1.1, 1), (0.5, 0.25, 1 / 0.75, 2)]
)
def test_the_scales_are_those_of_the_specification(beta, gamma, unit, paper):
    for scale, expected in (("unit", (unit, 1)), ("paper", (1, paper))):
        assert FDivergenceConfig(beta=beta, gamma=gamma, scale=scale).scales() == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"preset": "mine"}, "preset='mine'"),
        ({"weight_scale": "row"}, "weight_scale='row'"),
        ({"weight_scale": "group", "weight_cap": 2.0}, "weight_cap=2 with weight_scale=group"),
        ({"preset": "paper", "weight_cap": 2.0}, "weight_cap=2 with weight_scale=group"),
    ],
)
def test_bad_presets_and_scales_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        FDivergenceConfig(**settings)
    assert FDivergenceConfig(preset="paper", weight_cap=2.0, weight_scale="side").weight_cap == 2.0


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("level", ["sequence", "token_mean"])
@pytest.mark.parametrize("mode", ["softmax", "softmax_is"])
def test_group_weights_are_equations_11_and_12(mode, level, temperature):
    """One row at a time, in Python floats."""
    log_prob, _, mask = rows(torch.float64)
    found = group_weights(
        REWARDS,
        GROUPS,
        mode,
        log_prob,
        mask,
        weight_temperature=temperature,
        old_log_prob_level=level,
        weight_scale="group",
    )
    for i, group in enumerate(GROUPS):
        members = [j for j in range(12) if GROUPS[j] == group]
        mean = sum(REWARDS[j].item() for j in members) / len(members)
        sign = (REWARDS[i].item() > mean) - (REWARDS[i].item() < mean)

        def mass(j, sign=sign):
            total = sum(log_prob[j, t].item() for t in range(LENGTHS[j]))
            if level == "token_mean":
                total /= LENGTHS[j].item()
            return math.exp(sign * REWARDS[j].item() / temperature - (total if mode == "softmax_is" else 0.0))

        expected = mass(i) / sum(mass(j) for j in members) if sign else 0.0
        assert found[i].item() == pytest.approx(expected, rel=1e-6), i
    for group in "ab":  # each side's shares leave room for the rows that are not on it
        for side in (1, -1):
            on = [i for i in range(12) if GROUPS[i] == group and side * group_advantages(REWARDS, GROUPS)[i] > 0]
            assert 0 < found[on].sum() < 1


def test_inside_a_side_both_scales_have_the_same_ratios_and_none_has_no_scale():
    log_prob, _, mask = rows(torch.float64)
    side, group = (
        group_weights(REWARDS.double(), GROUPS, "softmax_is", log_prob, mask, weight_scale=scale)
        for scale in ("side", "group")
    )
    advantages = group_advantages(REWARDS, GROUPS)
    for name in "ab":
        for sign in (1, -1):
            on = [i for i in range(12) if GROUPS[i] == name and sign * advantages[i] > 0]
            torch.testing.assert_close(side[on] / side[on].mean(), group[on] / group[on].mean())
    assert torch.equal(*(group_weights(REWARDS, GROUPS, weight_scale=scale) for scale in ("side", "group")))
    with pytest.raises(ValueError, match=r"weight_cap=2.0 with weight_scale='group'"):
        group_weights(REWARDS, GROUPS, "softmax", weight_cap=2.0, weight_scale="group")
    with pytest.raises(ValueError, match="weight_scale='row'"):
        group_weights(REWARDS, GROUPS, "softmax", weight_scale="row")


def test_one_row_at_the_mean_may_take_all_of_a_groups_weight():
    rewards, old = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0], [-400.0], [0.0]])
    found = group_weights(
        rewards, ["a"] * 3, "softmax_is", old, torch.ones(3, 1), old_log_prob_level="sequence", weight_scale="group"
    )
    assert found.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", every_link(), ids=str)
def test_paper_and_released_have_the_same_gradient_in_the_first_step(key, level, lam):
    """pi_theta = pi_old != pi_ref: gamma = 1 is the implementation of the constant 1 + 1/beta."""
    name, link, alpha = key
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        gradients = []
        for preset in ("paper", "released", "stable"):
            settings = FDivergenceConfig(preset=preset, divergence=name, link=link, alpha=alpha, level=level)
            log_prob, reference, mask = rows(dtype)
            minimised(settings, log_prob, reference, mask, lam).backward()
            gradients.append(log_prob.grad)
        paper, released, stable = gradients
        largest = paper.abs().max()
        assert largest > 0
        assert (paper - released).abs().max() <= bound * largest
        assert (paper - stable).abs().max() > 0.01 * largest  # the presets differ otherwise
