"""FDO equals losses published elsewhere. Each one is written here from its paper, in float64 loops over scalars.

For pairs (chosen w, rejected l) the reward is that of the ordered pair, z = r_w - r_l; its mirror image, the pair read
backwards, has -z and is the unaligned row. `docs/divergences.md` gives the algebra.
"""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import fdo_loss, implicit_reward, kldo_loss

LOG2 = math.log(2)
REWARDS = st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=6)
SHIFTS = st.floats(-2, 2)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def fdo(divergence, chosen, rejected):
    rewards, sides = tensor([*chosen, *rejected]), torch.tensor([True] * len(chosen) + [False] * len(rejected))
    return fdo_loss(rewards, sides, divergence).item()


def fdo_of_pairs(divergence, pairs):
    z = [chosen - rejected for chosen, rejected in pairs]
    return fdo(divergence, z, [-value for value in z])


@settings(deadline=None)
@given(REWARDS)
def test_dpo_is_jensen_shannon_on_pairs(pairs):
    # Rafailov et al., arXiv 2305.18290, Eq. (7): -log sigmoid(beta h_w - beta h_l).
    dpo = statistics.fmean(-math.log(sigmoid(good - bad)) for good, bad in pairs)
    assert fdo_of_pairs(get_divergence("jensen_shannon"), pairs) == pytest.approx(2 * dpo - 2 * LOG2)
    assert fdo_of_pairs(get_divergence("gan"), pairs) == pytest.approx(2 * dpo)


@settings(deadline=None)
@given(REWARDS)
def test_ipo_is_pearson_on_pairs(pairs):
    # Azar et al., arXiv 2310.12036, Eq. (17): (h_w - h_l - 1/(2 tau))^2, here with r = beta h and tau = beta / 8.
    beta = 0.1
    tau = beta / 8
    ipo = statistics.fmean((good / beta - bad / beta - 1 / (2 * tau)) ** 2 for good, bad in pairs)
    assert fdo_of_pairs(get_divergence("pearson"), pairs) == pytest.approx(beta**2 / 4 * ipo - 4)


@settings(deadline=None)
@given(REWARDS)
def test_exponential_gpo_is_variational_hellinger_on_pairs(pairs):
    # Tang et al., arXiv 2402.05749, the exponential loss: exp(-(r_w - r_l)).
    gpo = statistics.fmean(math.exp(-(good - bad)) for good, bad in pairs)
    assert fdo_of_pairs(get_divergence("squared_hellinger"), pairs) == pytest.approx(2 * gpo - 2, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(REWARDS, SHIFTS)
def test_bco_is_gan_at_shifted_reward(rows, delta):
    # Jung et al., arXiv 2404.04656: -log sigmoid(r - delta) of the desirable, -log sigmoid(-(r - delta)) of the others.
    chosen, rejected = zip(*rows, strict=True)
    bco = statistics.fmean(-math.log(sigmoid(r - delta)) for r in chosen)
    bco += statistics.fmean(-math.log(sigmoid(delta - r)) for r in rejected)
    shifted = [r - delta for r in chosen], [r - delta for r in rejected]
    assert fdo(get_divergence("gan"), *shifted) == pytest.approx(bco)
    assert fdo(get_divergence("jensen_shannon"), *shifted) == pytest.approx(bco - 2 * LOG2)


SIDES = st.tuples(
    st.lists(st.floats(-8, 8), min_size=1, max_size=5), st.lists(st.floats(-8, 8), min_size=1, max_size=5)
)


@settings(deadline=None)
@given(SIDES, SHIFTS)
def test_kto_is_total_variation_at_half_the_shifted_reward(sides, z0):
    # Ethayarajh et al., arXiv 2402.01306: the mean over all rows of lambda_y - v, v = lambda_y sigmoid(+-(r - z0)).
    chosen, rejected = sides
    n = len(chosen) + len(rejected)
    lambda_d, lambda_u = n / len(chosen), n / len(rejected)
    kto = sum(lambda_d * (1 - sigmoid(r - z0)) for r in chosen) + sum(
        lambda_u * (1 - sigmoid(z0 - r)) for r in rejected
    )
    halved = [(r - z0) / 2 for r in chosen], [(r - z0) / 2 for r in rejected]
    assert fdo(get_divergence("total_variation"), *halved) == pytest.approx(kto / n - 1)


@settings(deadline=None)
@given(REWARDS)
def test_hdo_is_density_ratio_hellinger_for_sides_of_equal_size(rows):
    # The Hellinger trainer of the authors' public code: the mean over all rows of exp(-r/2) or exp(r/2).
    chosen, rejected = zip(*rows, strict=True)
    hdo = statistics.fmean([*(math.exp(-r / 2) for r in chosen), *(math.exp(r / 2) for r in rejected)])
    assert fdo(get_divergence("squared_hellinger", "density_ratio"), *(chosen, rejected)) == pytest.approx(2 * hdo - 2)


def donsker_varadhan(chosen, rejected):
    # Haldar et al., arXiv 2502.00657: - mean r + log mean exp(r).
    return -statistics.fmean(chosen) + math.log(statistics.fmean(math.exp(r) for r in rejected))


@settings(deadline=None)
@given(REWARDS)
def test_kldo_is_kl_at_the_best_constant_shift(rows):
    chosen, rejected = zip(*rows, strict=True)
    expected = donsker_varadhan(chosen, rejected)
    rewards = tensor([*chosen, *rejected]).requires_grad_()
    sides = torch.tensor([True] * len(chosen) + [False] * len(rejected))
    loss = kldo_loss(rewards, sides)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    best = 1 - math.log(statistics.fmean(math.exp(r) for r in rejected))
    kl = get_divergence("kl")
    assert fdo(kl, [r + best for r in chosen], [r + best for r in rejected]) == pytest.approx(expected, abs=1e-9)
    for other in (best - 0.1, best + 0.1):
        assert fdo(kl, [r + other for r in chosen], [r + other for r in rejected]) > expected
    # The gradient is that of the formula itself.
    again = rewards.detach().requires_grad_()
    formula = -again[sides].mean() + again[~sides].logsumexp(0) - math.log(len(rejected))
    (gradient,) = torch.autograd.grad(loss, rewards)
    torch.testing.assert_close(gradient, torch.autograd.grad(formula, again)[0])
    # It does not see a constant.
    assert kldo_loss(rewards.detach() + 3, sides).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_kldo_micro_batches_add_up_given_the_whole_steps_constant(level):
    draw = torch.Generator().manual_seed(0)
    rewards = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    mask = (torch.rand(9, 4, generator=draw) < 0.7).long()
    mask[:, 0], mask[3] = 1, 0
    if level == "sequence":
        rewards = rewards[:, 0]
    rewards.requires_grad_()
    sides = torch.tensor([True, False, False, False, True, True, False, True, False])
    counted = mask.any(-1) if level == "sequence" else mask.bool()
    side = sides if level == "sequence" else sides.unsqueeze(-1).expand(9, 4)
    chosen, rejected = rewards[counted & side], rewards[counted & ~side]
    counts = (len(chosen), len(rejected))
    whole = kldo_loss(rewards, sides, response_mask=mask)
    assert whole.item() == pytest.approx(donsker_varadhan(chosen.tolist(), rejected.tolist()))
    constant = rejected.detach().logsumexp(0) - math.log(len(rejected))

    def part(rows, log_mean_exp):
        return kldo_loss(
            rewards[rows], sides[rows], response_mask=mask[rows], denominator=counts, log_mean_exp=log_mean_exp
        )

    for parts in ([[0, 1, 2], [3, 4], [5, 6, 7, 8]], [[i] for i in range(9)]):
        split = sum(part(rows, constant) for rows in parts)
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
        (expected,) = torch.autograd.grad(whole, rewards, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(split, rewards)[0], expected, rtol=0, atol=1e-12)


def test_kldo_ignores_masked_garbage_and_upcasts():
    rewards, sides = torch.tensor([0.5, -1.0, 2.0, 0.25]), torch.tensor([True, False, False, True])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]])
    clean = kldo_loss(rewards[[0, 1, 3]], sides[[0, 1, 3]])
    for garbage in (math.nan, math.inf, -math.inf):
        dirty = torch.where(mask.any(-1), rewards, garbage).requires_grad_()
        loss = kldo_loss(dirty, sides, response_mask=mask)
        assert torch.equal(loss, clean) and torch.autograd.grad(loss, dirty)[0][2] == 0
    short = kldo_loss(rewards.bfloat16(), sides)
    assert short.dtype == torch.float32 and torch.equal(short, kldo_loss(rewards, sides))


def test_kldo_splits_in_float32_and_in_any_order():
    draw = torch.Generator().manual_seed(0)
    rewards, sides = torch.randn(64, generator=draw), torch.rand(64, generator=draw) < 0.4
    constant = rewards[~sides].logsumexp(0) - math.log((~sides).sum())
    counts = (int(sides.sum()), int((~sides).sum()))

    def gradient(*parts):
        leaf = rewards.clone().requires_grad_()
        for rows in parts:
            kldo_loss(leaf[rows], sides[rows], denominator=counts, log_mean_exp=constant).backward()
        return leaf.grad

    leaf = rewards.clone().requires_grad_()
    (whole,) = torch.autograd.grad(kldo_loss(leaf, sides), leaf)
    for parts in (torch.arange(64).split(7), torch.randperm(64, generator=draw).split(10)):
        assert (gradient(*parts) - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_kldo_with_one_side_in_float32_and_at_large_rewards():
    both = torch.tensor([True, True]), torch.tensor([False, False])
    reward = torch.tensor([1.0, 3.0])
    assert kldo_loss(reward, both[0]).item() == -2
    expected = math.log((math.e + math.e**3) / 2)
    assert kldo_loss(reward, both[1]).item() == pytest.approx(expected)
    assert kldo_loss(reward, both[1], log_mean_exp=expected).item() == pytest.approx(expected)
    huge = torch.tensor([500.0, -500.0, 400.0], requires_grad=True)
    loss = kldo_loss(huge, torch.tensor([True, False, False]))
    assert loss.item() == pytest.approx(-500 + 400 - LOG2)
    assert torch.autograd.grad(loss, huge)[0].tolist() == pytest.approx(
        [-1, 0, 1], abs=1e-4
    )  # c carries 400's rounding


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"denominator": (1, 1)}, "log_mean_exp=None with a denominator: .*couples all D- rows"),
        ({"log_mean_exp": math.nan}, "log_mean_exp=nan must be finite"),
        ({"denominator": 2, "log_mean_exp": 0.0}, "denominator=2 must be a pair"),
        ({"desirable": torch.ones(2)}, "desirable must be a bool tensor"),
        ({"implicit_reward": torch.tensor([0.0, math.inf])}, "implicit_reward is not finite"),
    ],
)
def test_kldo_refusals(arguments, message):
    given = {"implicit_reward": torch.zeros(2), "desirable": torch.tensor([True, False])} | arguments
    with pytest.raises(ValueError, match=message):
        kldo_loss(given.pop("implicit_reward"), given.pop("desirable"), **given)


def real_loss(scores, positive):
    """REAL of one group (Rewards as Labels, arXiv 2602.05630, as ms-swift has it): each sum is in one logarithm."""
    on, off = (sum(math.exp(-s if p else s) for s, p in zip(scores, positive, strict=True) if p == k) for k in (1, 0))
    return math.log(1 + on) + math.log(1 + off)


def test_real_is_gan_for_one_positive_and_one_negative_response_and_not_for_more():
    """Score: mean over tokens of log(pi/pi_old), over tau; here beta = 1/tau, with pi_old in place of pi_ref."""
    draw, tau = torch.Generator().manual_seed(0), 0.5
    log_prob, old = (-2 * torch.rand(8, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    lengths = [3, 5, 1, 4, 2, 5, 3, 4]
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(-1)
    scores = [
        statistics.fmean((log_prob[i, t] - old[i, t]).item() for t in range(n)) / tau for i, n in enumerate(lengths)
    ]
    positive = [1, 0] * 4
    reward = implicit_reward(log_prob, old, mask, 1 / tau, level="sequence_mean")
    assert reward.tolist() == pytest.approx(scores)
    sides = torch.tensor(positive).bool()
    ours = fdo_loss(reward, sides, get_divergence("gan")).item()
    pairs = [real_loss(scores[i : i + 2], positive[i : i + 2]) for i in range(0, 8, 2)]
    assert ours == pytest.approx(statistics.fmean(pairs), rel=1e-12)
    # Groups of four: the sums share one pull, so the loss is another, and so is the balance of its rows.
    fours = [real_loss(scores[i : i + 4], positive[i : i + 4]) for i in (0, 4)]
    assert abs(statistics.fmean(fours) - ours) > 0.1
    # Its plain binary cross-entropy is gan for any group.
    terms = [math.log1p(math.exp(-s if p else s)) for s, p in zip(scores, positive, strict=True)]
    assert ours == pytest.approx(2 * statistics.fmean(terms), rel=1e-12)  # a mean of all rows; FDO has one a side


@pytest.mark.parametrize("n", [1, 2, 5])
def test_in_the_first_step_real_pulls_each_positive_response_by_one_over_their_number_plus_one(n):
    step = 1e-6
    for place in range(n + 2):
        moved = [[sign * step * (i == place) for i in range(n + 2)] for sign in (1, -1)]
        slope = (real_loss(moved[0], [1] * n + [0, 0]) - real_loss(moved[1], [1] * n + [0, 0])) / (2 * step)
        assert slope == pytest.approx(-1 / (n + 1) if place < n else 1 / 3, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["kl", "reverse_kl", "pearson", "neyman", "squared_hellinger", "jensen_shannon", "jeffreys"]
)
def test_the_reward_of_f_dpg_is_minus_our_density_ratio_link(name):
    """Go et al., arXiv 2302.08215: grad D_f(pi, p) = E_pi f'(pi/p) grad log pi, p ~ pi_ref exp(R/beta)."""
    draw = torch.Generator().manual_seed(1)
    reference, logits = (torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(2))
    rewards, beta = torch.rand(6, generator=draw, dtype=torch.float64), 0.5
    target = (reference.log_softmax(-1) + rewards / beta).softmax(-1)
    logits.requires_grad_()
    policy, d = logits.softmax(-1), get_divergence(name, "density_ratio")
    (expected,) = torch.autograd.grad(d.exact(policy, target), logits, retain_graph=True)
    reward = -d.link((policy / target).log()).detach()  # what f-DPG pays a sample
    total = -sum(policy[y].item() * reward[y] * policy[y].log() for y in range(6))
    (found,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
