"""FDO equals losses published elsewhere. Each one is written here from its paper, in float64 loops over scalars.

For pairs (chosen w, rejected l) the reward is that of the ordered pair, z = r_w - r_l; its mirror image, the pair read
backwards, has -z and is the unaligned row. `docs/divergences.md` gives the algebra.
"""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_plugin.advantages import group_advantages
from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import f_grpo_loss, fdo_loss, implicit_reward, kldo_loss

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


@settings(deadline=None)
@given(SIDES)
def test_the_losses_of_kldos_code(sides):
    """Two of its three `type`s: without the logarithm, with a slope over a moving mean. The third is the formula."""
    chosen, rejected = sides
    plain = -statistics.fmean(chosen) + statistics.fmean(math.exp(r - 1) for r in rejected)
    assert fdo(get_divergence("kl"), chosen, rejected) == pytest.approx(plain, rel=1e-9, abs=1e-9)  # f-div
    moving_mean = 0.7
    rewards = tensor([*chosen, *rejected]).requires_grad_()
    desirable = torch.tensor([True] * len(chosen) + [False] * len(rejected))
    (slopes,) = torch.autograd.grad(kldo_loss(rewards, desirable, log_mean_exp=math.log(moving_mean)), rewards)
    expected = [-1 / len(chosen)] * len(chosen) + [math.exp(r) / moving_mean / len(rejected) for r in rejected]
    assert slopes.tolist() == pytest.approx(expected, rel=1e-9)  # ma


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
    on_policy = f_grpo_loss(reward, 2.0 * sides.double() - 1, get_divergence("gan"), denominator=len(pairs)).item()
    assert on_policy == pytest.approx(statistics.fmean(pairs), rel=1e-12)
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


def test_real_has_the_gradient_of_gan_at_weights_that_the_policy_sets():
    """f-GRPO, abs(a) = 1, w_i = (1 + exp(-+s_i)) / (1 + sum exp(-+s_j)) without gradient, N the number of groups."""
    draw = torch.Generator().manual_seed(2)
    groups = [[1, 0], [1, 1, 0], [1, 0, 0, 0, 1], [0, 0, 1]]
    scores = [torch.randn(len(sides), generator=draw, dtype=torch.float64).requires_grad_() for sides in groups]
    published = torch.zeros((), dtype=torch.float64)
    weights, advantages = [], []
    for group, sides in zip(scores, groups, strict=True):
        total = {1: 1.0, 0: 1.0}
        for s, side in zip(group, sides, strict=True):
            total[side] = total[side] + torch.exp(-s if side else s)
        published = published + (torch.log(total[1]) + torch.log(total[0])) / len(groups)
        for s, side in zip(group.tolist(), sides, strict=True):
            weights.append((1 + math.exp(-s if side else s)) / total[side].item())
            advantages.append(1.0 if side else -1.0)
    assert published.item() == pytest.approx(
        statistics.fmean(real_loss(group.tolist(), sides) for group, sides in zip(scores, groups, strict=True))
    )
    gan = get_divergence("gan")
    ours = f_grpo_loss(torch.cat(scores), tensor(advantages), gan, tensor(weights), denominator=len(groups))
    expected = torch.cat(torch.autograd.grad(published, scores))
    torch.testing.assert_close(torch.cat(torch.autograd.grad(ours, scores)), expected, rtol=1e-12, atol=1e-14)
    assert abs(ours.item() - published.item()) > 0.1  # the gradient alone
    plain = f_grpo_loss(torch.cat(scores), tensor(advantages), gan, denominator=len(groups))
    difference = torch.cat(torch.autograd.grad(plain, scores)) - expected
    assert difference[:2].abs().max() < 1e-14  # one of each: every weight is 1
    assert difference[2:4].abs().min() > 0.01  # two positive responses share one pull
    assert weights[:2] == [1, 1] and weights[2] < 1


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_pair_term_of_amir_grpo_is_gan_on_the_pairs_of_a_group(with_reference):
    """Yari and Koto, arXiv 2601.03661, as in their code: pairs whose rewards differ by more than a margin."""
    draw, beta, margin = torch.Generator().manual_seed(3), 0.2, 0.5
    log_prob, ref = (-2 * torch.rand(5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    if not with_reference:
        ref = torch.zeros_like(ref)
    lengths, rewards = [4, 2, 3, 1, 4], [1.0, 0.0, 0.7, 0.2, 1.4]
    means = [statistics.fmean((log_prob[i, t] - ref[i, t]).item() for t in range(n)) for i, n in enumerate(lengths)]
    pairs = [(i, j) for i in range(5) for j in range(5) if rewards[i] - rewards[j] > margin]
    published = statistics.fmean(-math.log(sigmoid(beta * (means[i] - means[j]))) for i, j in pairs)
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(-1)
    r = implicit_reward(log_prob, ref, mask, beta, level="sequence_mean").tolist()
    of_pairs = [(r[i], r[j]) for i, j in pairs]
    assert fdo_of_pairs(get_divergence("gan"), of_pairs) == pytest.approx(2 * published, rel=1e-12)
    assert fdo_of_pairs(get_divergence("jensen_shannon"), of_pairs) == pytest.approx(
        2 * published - 2 * LOG2, abs=1e-12
    )
    # Each response by itself is another loss.
    good, bad = [r[i] for i, _ in pairs], [r[j] for _, j in pairs]
    assert abs(fdo(get_divergence("gan"), good, bad) - 2 * published) > 1e-3


@pytest.mark.parametrize("positive", [1, 2, 4])
def test_at_the_reference_amir_grpo_pulls_as_gan_does_for_binary_rewards(positive):
    """At r = 0: 1/(2 n+) and 1/(2 n-), which is FDO's, and f-GRPO's but for a factor that a group's responses share."""
    n, rewards = 6, [1.0] * positive + [0.0] * (6 - positive)
    r = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    pairs = [(i, j) for i in range(n) for j in range(n) if rewards[i] > rewards[j]]
    (pulls,) = torch.autograd.grad(sum(-torch.log(torch.sigmoid(r[i] - r[j])) for i, j in pairs) / len(pairs), r)
    assert pulls.tolist() == pytest.approx([-0.5 / positive] * positive + [0.5 / (n - positive)] * (n - positive))
    gan, sides = get_divergence("gan"), torch.tensor(rewards) > 0
    torch.testing.assert_close(torch.autograd.grad(fdo_loss(r, sides, gan), r)[0], pulls, rtol=1e-12, atol=0)
    advantages = group_advantages(tensor(rewards), ["a"] * n).double()
    (ours,) = torch.autograd.grad(f_grpo_loss(r, advantages, gan), r)
    share = positive / n
    torch.testing.assert_close(ours, pulls * share * (1 - share) / statistics.stdev(rewards), rtol=1e-5, atol=0)
    # Away from the reference it is a weight of differences, and no longer that of any one response.
    away = torch.arange(n, dtype=torch.float64).requires_grad_()
    (pulls,) = torch.autograd.grad(
        sum(-torch.log(torch.sigmoid(away[i] - away[j])) for i, j in pairs) / len(pairs), away
    )
    assert (pulls - torch.autograd.grad(fdo_loss(away, sides, gan), away)[0]).abs().max() > 1e-2


def dph_rl(mode, ratio):
    """One token's term of DPH-RL (Li et al., arXiv 2509.07430, the authors' code), ratio = pi/pi_0, y from pi_0."""
    if mode == "forward":
        return ratio - math.log(ratio) - 1
    if mode == "js":
        return ratio * math.log(ratio) - (ratio + 1) * math.log((ratio + 1) / 2)
    alpha = 0.2
    return (ratio ** (1 - alpha) - (1 - alpha) * ratio - alpha) / (alpha * (alpha - 1))


@pytest.mark.parametrize(
    ("mode", "divergence", "adds_up"),
    [
        ("forward", get_divergence("reverse_kl"), True),
        ("js", get_divergence("jensen_shannon"), False),
        ("alpha", get_divergence("alpha", alpha=0.8), False),
    ],
)
def test_a_token_of_dph_rl_is_our_generator_and_its_sum_over_tokens_a_divergence_for_kl_alone(
    mode, divergence, adds_up
):
    for ratio in (0.05, 0.6, 1.0, 1.7, 9.0):
        generator = divergence.generator(tensor(ratio)).item() + (ratio - 1 if mode == "forward" else 0)
        assert dph_rl(mode, ratio) == pytest.approx(generator, rel=1e-12, abs=1e-14)
    # Two tokens out of three: first[a] then second[a][b].
    draw = torch.Generator().manual_seed(4)
    first, second = [
        torch.randn(2, *shape, generator=draw, dtype=torch.float64).softmax(-1) for shape in ((3,), (3, 3))
    ]
    one_token = sum(first[1][a].item() * dph_rl(mode, (first[0][a] / first[1][a]).item()) for a in range(3))
    assert one_token == pytest.approx(divergence.exact(*first).item(), rel=1e-12)
    whole = (first.unsqueeze(-1) * second).flatten(1)
    total = 0.0
    for a, b in itertools.product(range(3), repeat=2):
        ratios = (first[0][a] / first[1][a]).item(), (second[0][a, b] / second[1][a, b]).item()
        total += whole[1][3 * a + b].item() * sum(dph_rl(mode, ratio) for ratio in ratios)
    exact = divergence.exact(*whole).item()
    assert (total == pytest.approx(exact, rel=1e-12)) is adds_up
    assert adds_up or abs(total - exact) > 1e-2


SLOPE_OF_F = {  # f'(e^u) of each loss of f-DPG's library, by its name there
    ("KL", "reverse_kl"): lambda u: -math.exp(-u),
    ("reverse KL", "kl"): lambda u: 1 + u,
    ("JS", "jensen_shannon"): lambda u: math.log(2 / (1 + math.exp(-u))),
    ("chi-squared", "neyman"): lambda u: 1 - math.exp(-2 * u),
    ("reverse chi-squared", "pearson"): lambda u: 2 * (math.exp(u) - 1),
}


@pytest.mark.parametrize("names", SLOPE_OF_F, ids="-".join)
def test_the_losses_of_f_dpgs_library_are_density_ratio_links(names):
    for u in (-3.0, -0.4, 0.0, 0.7, 2.5):
        link = get_divergence(names[1], "density_ratio").link(tensor(u)).item()
        assert link == pytest.approx(SLOPE_OF_F[names](u), rel=1e-12, abs=1e-14)


def test_the_library_of_f_dpg_has_total_variation_where_we_refuse_the_link():
    with pytest.raises(ValueError, match="sign"):
        get_divergence("total_variation", "density_ratio")


def test_f_dpg_with_kl_is_reinforce_with_a_kl_penalty_in_the_reward():
    """-f' = R/beta - log(pi/pi_ref) - log Z - 1: times beta, the penalised reward less a constant of the prompt."""
    draw, beta = torch.Generator().manual_seed(5), 0.3
    policy, reference = torch.randn(2, 6, generator=draw, dtype=torch.float64).softmax(-1)
    rewards = torch.rand(6, generator=draw, dtype=torch.float64)
    z = sum(reference[y].item() * math.exp(rewards[y].item() / beta) for y in range(6))
    target = [reference[y].item() * math.exp(rewards[y].item() / beta) / z for y in range(6)]
    link = get_divergence("kl", "density_ratio").link((policy / tensor(target)).log())
    for y in range(6):
        penalised = rewards[y].item() - beta * math.log(policy[y] / reference[y])
        assert -beta * link[y].item() == pytest.approx(penalised - beta * (math.log(z) + 1), rel=1e-12)
