"""The paper's theorems, computed on tables, for every divergence and link; and the losses against their limit."""

import itertools
import math

import pytest
import torch

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import f_grpo_loss
from fgrpo_plugin.theory import (
    alignment_sides,
    expected_reward,
    fit_policy,
    iterate,
    optimal_reward,
    population_f_grpo,
    population_fdo,
)
from tests.support.theory_tables import (
    ATTAINED,
    EVERY,
    PAPER_BETA,
    divergence,
    prompt,
    tables,
)

# Definition 4.1: the two sides.


@pytest.mark.parametrize("mode", ["softmax_is", "softmax", "none"])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_sides_are_definition_4_1_response_by_response(mode, eps):
    _, start, rewards = tables(3)
    found = alignment_sides(start, rewards, eps, mode)
    for row in range(3):
        mu = sum(p * r for p, r in zip(start[row].tolist(), rewards[row].tolist(), strict=True))
        for side, sign in zip(found, (1.0, -1.0), strict=True):
            masses = []
            for p, r in zip(start[row].tolist(), rewards[row].tolist(), strict=True):
                mass = max(sign * (r - mu), 0.0)  # (R - mu)_+ or (mu - R)_+
                mass *= math.exp(sign * r) if mode != "none" else 1.0
                masses.append(mass * (p if mode != "softmax_is" else 1.0))
            for y, mass in enumerate(masses):
                expected = (1 - eps) * mass / sum(masses) + eps * start[row, y].item()
                assert side[row, y].item() == pytest.approx(expected, rel=1e-9)


# Theorem 1: variational estimate.


@pytest.mark.parametrize("key", ATTAINED, ids=str)
def test_optimal_reward_is_the_link_undone_at_the_slope_of_f(key):
    d = divergence(key)
    ratio = torch.tensor([0.05, 0.5, 1.0, 2.0, 20.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(d.generator(ratio).sum(), ratio)
    best = optimal_reward(ratio.detach(), torch.ones(5, dtype=torch.float64), d)
    torch.testing.assert_close(d.link(best), slope)


@pytest.mark.parametrize("key", EVERY, ids=str)
def test_optimal_reward_where_a_density_vanishes(key):
    best = optimal_reward(
        torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64),
        torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64),
        divergence(key),
    )
    assert best[0] == math.inf and best[3] == -math.inf
    pearson = key[0].startswith("pearson") and key[1] == "variational"
    assert best[2] == (-2 if pearson else -math.inf)  # pearson: f'(0) is finite


@pytest.mark.parametrize("key", ATTAINED, ids=str)
def test_minimised_fdo_is_minus_the_divergence(key):
    d = divergence(key)
    aligned, unaligned = (side[0] for side in alignment_sides(*(t[:1] for t in tables(1)[1:]), eps=0.3))
    exact = (d.exact(aligned, unaligned) - d.estimate_offset).item()
    best = optimal_reward(aligned, unaligned, d)
    assert population_fdo(best, aligned, unaligned, d).item() == pytest.approx(-exact, abs=1e-9)

    free = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = population_fdo(free, aligned, unaligned, d)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert population_fdo(free.detach(), aligned, unaligned, d).item() == pytest.approx(-exact, abs=1e-6)
    torch.testing.assert_close(free.detach(), best, rtol=1e-3, atol=1e-3)


def test_total_variation_tends_to_its_infimum_and_learns_the_sign():
    d = get_divergence("total_variation")
    aligned, unaligned = (side[0] for side in alignment_sides(*(t[:1] for t in tables(1)[1:]), eps=0.3))
    exact = d.exact(aligned, unaligned).item()
    sign = torch.sign(optimal_reward(aligned, unaligned, d))
    assert torch.equal(sign, torch.sign(aligned - unaligned))
    free = torch.zeros(6, dtype=torch.float64, requires_grad=True)  # what descent finds by itself
    for _ in range(20):
        (gradient,) = torch.autograd.grad(population_fdo(free, aligned, unaligned, d), free)
        free = (free - gradient).detach().requires_grad_()
    assert torch.equal(torch.sign(free), sign)
    losses = [population_fdo(scale * sign, aligned, unaligned, d).item() for scale in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)]
    assert losses == sorted(losses, reverse=True) and losses[-2] > -exact
    assert losses[-1] == pytest.approx(-exact, abs=1e-12)
    assert population_fdo(-16 * sign, aligned, unaligned, d).item() == pytest.approx(+exact, abs=1e-12)


# Theorem 2: alignment consistency.


@pytest.mark.parametrize("key", ATTAINED, ids=str)
def test_the_minimiser_over_policies_is_the_iterate_if_a_constant_of_the_prompt_is_free(key):
    d = divergence(key)
    reference, rewards = prompt()
    aligned, unaligned = alignment_sides(reference, rewards, eps=0.3)
    expected = iterate(reference, aligned, unaligned, d, beta=1.0)
    best = fit_policy(reference, 1.0, lambda r: population_fdo(r, aligned, unaligned, d), free_constant=True)
    torch.testing.assert_close(best, expected, rtol=0, atol=1e-6)


def test_the_minimum_is_reached_from_where_a_line_search_ends_early():
    # The flattest of them: after 80 of L-BFGS's iterations a probability is still wrong by 3e-5.
    d = get_divergence("alpha", "density_ratio", alpha=3.0)
    reference, rewards = prompt()
    aligned, unaligned = alignment_sides(reference, rewards, eps=0.3)
    best = fit_policy(reference, 1.0, lambda r: population_fdo(r, aligned, unaligned, d), free_constant=True, steps=80)
    torch.testing.assert_close(best, iterate(reference, aligned, unaligned, d, beta=1.0), rtol=0, atol=1e-12)


def test_the_minimiser_over_policies_is_another_if_the_reward_is_bound_to_the_policy():
    reference, rewards = prompt()
    aligned, unaligned = alignment_sides(reference, rewards, eps=0.3)
    for key in ATTAINED:
        d = divergence(key)
        best = fit_policy(reference, 1.0, lambda r, d=d: population_fdo(r, aligned, unaligned, d))
        expected = iterate(reference, aligned, unaligned, d, beta=1.0)
        assert (best - expected).abs().max() > 0.01
        # What it is all the same: better than the reference, by mass taken from below the mean.
        below = rewards < expected_reward(reference, rewards)
        assert (best * below).sum() < 0.5 * (reference * below).sum()
        assert expected_reward(best, rewards) > expected_reward(reference, rewards)


def test_kldo_does_not_see_the_constant_so_its_bound_minimiser_is_the_iterate():
    reference, rewards = prompt()
    aligned, unaligned = alignment_sides(reference, rewards, eps=0.3)

    def donsker_varadhan(r):
        return -(aligned * r).sum() + (unaligned.log() + r).logsumexp(-1)

    best = fit_policy(reference, 1.0, donsker_varadhan)
    expected = iterate(reference, aligned, unaligned, get_divergence("kl", "density_ratio"), beta=1.0)
    torch.testing.assert_close(best, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("beta", [PAPER_BETA, 1.0])
@pytest.mark.parametrize("key", EVERY, ids=str)
def test_disjoint_iterate_is_the_reference_restricted_to_the_above_average_set(key, beta):
    reference, start, rewards = tables(50)
    above = rewards > expected_reward(start, rewards).unsqueeze(-1)
    restricted = reference * above / (reference * above).sum(-1, keepdim=True)
    torch.testing.assert_close(iterate(reference, *alignment_sides(start, rewards), divergence(key), beta), restricted)


@pytest.mark.parametrize("key", EVERY, ids=str)
def test_smoothed_iterate_leaves_no_mass_below_the_mean_as_eps_goes_to_zero(key):
    d = divergence(key)
    reference, start, rewards = tables(50)
    below = rewards < expected_reward(start, rewards).unsqueeze(-1)
    masses = [
        (iterate(reference, *alignment_sides(start, rewards, eps), d, 1.0) * below).sum(-1)
        for eps in (1e-1, 1e-3, 1e-5, 1e-7)
    ]
    for wide, narrow in itertools.pairwise(masses):
        assert ((narrow < 0.2 * wide) | (narrow < 1e-12)).all()


EXPONENTS = {"reverse_kl": 1.0, "kl": 1.0, "jensen_shannon": 1.0, "gan": 1.0, "neyman": 2.0, "squared_hellinger": 0.5}
"""k of the variational links: r* = k log of the ratio of densities, up to a constant; 1 for density-ratio links."""


def side_over_policy(start, rewards, mode):
    """D+ / pi_t above the mean, up to a factor: what the smoothed ratio tends to."""
    centred = (rewards - expected_reward(start, rewards).unsqueeze(-1)).clamp(min=0)
    return centred * {"none": 1.0, "softmax": rewards.exp(), "softmax_is": rewards.exp() / start}[mode]


@pytest.mark.parametrize("mode", ["softmax_is", "softmax", "none"])
@pytest.mark.parametrize(
    "key",
    [key for key in ATTAINED if key[1] == "density_ratio" or key[0] in EXPONENTS],
    ids=str,
)
def test_smoothed_iterate_tends_to_a_tilted_restriction(key, mode):
    """D+ is not proportional to pi_t above the mean: r* = k log of their ratio keeps that difference for every eps."""
    reference, start, rewards = tables(50)
    k = EXPONENTS[key[0]] if key[1] == "variational" else 1.0
    tilted = reference * side_over_policy(start, rewards, mode) ** k
    tilted = tilted / tilted.sum(-1, keepdim=True)
    limit = iterate(reference, *alignment_sides(start, rewards, 1e-12, mode), divergence(key), 1.0)
    torch.testing.assert_close(limit, tilted, rtol=0, atol=1e-4)
    above = rewards > expected_reward(start, rewards).unsqueeze(-1)
    restricted = reference * above / (reference * above).sum(-1, keepdim=True)
    assert ((limit - restricted).abs().amax(-1) > 0.03).float().mean() > 0.8


def test_smoothed_iterate_of_pearson_and_total_variation():
    reference, start, rewards = tables(50)
    above = rewards > expected_reward(start, rewards).unsqueeze(-1)
    sides = alignment_sides(start, rewards, 1e-9)
    # 2 (t - 1) grows with 1/eps itself: the response with the largest ratio takes all.
    largest = side_over_policy(start, rewards, "softmax_is").argmax(-1)
    pearson = iterate(reference, *sides, get_divergence("pearson"), 1.0)
    assert torch.equal(pearson.argmax(-1), largest) and (pearson.amax(-1) > 1 - 1e-9).all()
    # total_variation sees only on which side a response is.
    restricted = reference * above / (reference * above).sum(-1, keepdim=True)
    torch.testing.assert_close(iterate(reference, *sides, get_divergence("total_variation"), 1.0), restricted)


# What is trained: the minimiser of the losses over policies, with r bound to the policy.


@pytest.mark.parametrize("beta", [PAPER_BETA, 1.0])
def test_trained_minimiser_for_disjoint_sides_is_not_the_restriction(beta):
    """kl on disjoint sides: -E_{D+} log pi is all that is left once the bad rows are gone, so FDO gives D+ itself."""
    reference, rewards = prompt()
    aligned, unaligned = alignment_sides(reference, rewards)
    below = unaligned > 0
    kl = get_divergence("kl")
    fdo = fit_policy(reference, beta, lambda r: population_fdo(r, aligned, unaligned, kl))
    assert (fdo * below).sum() < 1e-3 + 2 * math.exp(-1 / beta)
    torch.testing.assert_close(fdo * ~below / (fdo * ~below).sum(), aligned, rtol=0, atol=1e-3)
    # So does f-GRPO: |a| w of a response is its density under D+, times one number a side.
    trained = fit_policy(reference, beta, lambda r: population_f_grpo(r, reference, rewards, kl))
    torch.testing.assert_close(trained * ~below / (trained * ~below).sum(), aligned, rtol=0, atol=1e-3)


@pytest.mark.parametrize("key", EVERY, ids=str)
def test_trained_minimiser_improves_the_reward_and_empties_the_bad_side(key):
    reference, rewards = prompt()
    d = divergence(key)
    if d.generator(torch.zeros(())) == math.inf:  # no minimiser: D_f of disjoint sides is infinite
        low = population_f_grpo(torch.where(rewards < 1, -50.0, 0.0), reference, rewards, d)
        assert low < population_f_grpo(torch.where(rewards < 1, -25.0, 0.0), reference, rewards, d) < -1
        return
    trained = fit_policy(reference, 1.0, lambda r: population_f_grpo(r, reference, rewards, d))
    assert expected_reward(trained, rewards) > expected_reward(reference, rewards)
    below = rewards < expected_reward(reference, rewards)
    assert (trained * below).sum() < 0.2 * (reference * below).sum()


def test_pearson_leaves_a_floor_on_bad_responses():
    """Its weight on a bad row is 0 at r = -2, so such a response keeps about exp(-2/beta) of the reference."""
    reference, rewards = prompt()
    below = rewards < expected_reward(reference, rewards)

    def left(name):
        loss = lambda r: population_f_grpo(r, reference, rewards, get_divergence(name))  # noqa: E731
        return (fit_policy(reference, 1.0, loss) * below / reference)[below]

    assert (left("pearson") > 0.5 * math.exp(-2)).all() and (left("pearson") < 1.01 * math.exp(-2)).all()
    assert (left("kl") < 0.1 * left("pearson")).all()


# The losses of the package are these, for a group large enough.


@pytest.mark.parametrize("mode", ["none", "softmax", "softmax_is"])
@pytest.mark.parametrize("key", [("kl", None, {}), ("pearson", None, {}), ("jensen_shannon", None, {})], ids=str)
def test_population_loss_is_the_limit_of_the_loss_of_a_group(key, mode):
    d = divergence(key)
    counts = torch.tensor([700, 200, 1500, 100, 2500])  # a group in which every response has exactly its share
    policy = counts.double() / counts.sum()
    rewards = torch.tensor([0.3, 1.7, 0.9, -0.4, 0.5], dtype=torch.float64)
    reward = torch.tensor([0.2, -0.5, 1.0, 0.4, -1.2], dtype=torch.float64, requires_grad=True)
    row = torch.repeat_interleave(torch.arange(5), counts)
    advantages = group_advantages(rewards[row], torch.zeros(len(row)))
    log_prob, mask = policy.log()[row].unsqueeze(-1), torch.ones(len(row), 1)
    weights = group_weights(rewards[row], torch.zeros(len(row)), mode, log_prob, mask)
    loss = f_grpo_loss(reward[row], advantages, d, weights)
    expected = population_f_grpo(reward, policy, rewards, d, mode=mode)
    torch.testing.assert_close(loss, expected, rtol=2e-4, atol=0)  # std over n - 1 against n: 1e-4
    gradients = (torch.autograd.grad(value, reward)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=2e-4, atol=0)


@pytest.mark.parametrize("policy", [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("rewards", [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
@pytest.mark.parametrize("mode", ["none", "softmax", "softmax_is"])
def test_degenerate_policies_give_numbers(policy, rewards, mode):
    policy, rewards = torch.tensor(policy).double(), torch.tensor(rewards).double()
    reward = torch.tensor([0.3, -0.2, 0.1]).double().requires_grad_()
    d = get_divergence("jensen_shannon")
    loss = population_f_grpo(reward, policy, rewards, d, mode=mode)
    (gradient,) = torch.autograd.grad(loss, reward)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    if (policy * (rewards - rewards.mean())).abs().max() == 0 or policy.max() == 1:
        assert loss == 0 and gradient.eq(0).all()  # all rewards that the policy meets are equal
    for side in alignment_sides(policy, rewards, mode=mode):
        assert side.sum().item() == pytest.approx(1.0)


DISJOINT = {"squared_hellinger": 2.0, "jensen_shannon": 2 * math.log(2), "gan": 2 * math.log(2), "total_variation": 1.0}
"""f(0) + f'(inf), plus what a reported estimate adds; infinite for every other entry."""


@pytest.mark.parametrize("key", [*EVERY, *(("alpha", "density_ratio", {"alpha": a}) for a in (0.2, 0.9))], ids=str)
def test_disjoint_sides_have_the_divergence_of_their_entry(key):
    """Whatever the sides are: it says nothing about how far apart they lie."""
    name, _, params = key
    order = params.get("alpha")
    expected = DISJOINT.get(name, math.inf) if order is None or not 0 < order < 1 else 1 / (order * (1 - order))
    d = divergence(key)
    for sides in ([[0.4, 0.6, 0.0], [0.0, 0.0, 1.0]], [[0.1, 0.0, 0.9], [0.0, 1.0, 0.0]]):
        assert d.exact(*torch.tensor(sides).double()).item() == pytest.approx(expected)


def test_the_variational_optimum_of_disjoint_sides_reaches_their_divergence():
    aligned, unaligned = torch.tensor([[0.4, 0.6, 0.0], [0.0, 0.0, 1.0]]).double()
    d = get_divergence("jensen_shannon")
    best = optimal_reward(aligned, unaligned, d)
    assert best.tolist() == [math.inf, math.inf, -math.inf]
    assert population_fdo(best, aligned, unaligned, d).item() == pytest.approx(-2 * math.log(2))


def test_refusals():
    policy = torch.ones(3).double() / 3
    with pytest.raises(ValueError, match="unknown mode='typo'"):
        alignment_sides(policy, policy, mode="typo")
    with pytest.raises(ValueError, match=r"eps=1\.0 must lie in"):
        alignment_sides(policy, policy, 1.0)
