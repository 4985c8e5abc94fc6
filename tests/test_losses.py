"""The losses against hand computation, plain loops over rows and tokens, and losses known from elsewhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_plugin.divergences import get_divergence
from fgrpo_plugin.losses import (
    clip_implicit_reward,
    f_grpo_loss,
    f_grpo_row_losses,
    f_hal_loss,
    fdo_loss,
    fdo_row_losses,
    implicit_reward,
    kldo_loss,
    row_slopes,
)

# g and f*(g) in plain Python, from the definitions of the divergences.
LINKS = {
    ("kl", "variational"): (lambda v: v, lambda v: math.exp(v - 1)),
    ("pearson", "variational"): (lambda v: v, lambda v: v + v * v / 4),
    ("squared_hellinger", "variational"): (lambda v: 1 - math.exp(-v), lambda v: math.exp(v) - 1),
    ("jensen_shannon", "variational"): (
        lambda v: math.log(2 / (1 + math.exp(-v))),
        lambda v: -math.log(2 / (1 + math.exp(v))),
    ),
    ("total_variation", "variational"): (lambda v: math.tanh(v) / 2, lambda v: math.tanh(v) / 2),
    ("jeffreys", "density_ratio"): (lambda u: u + 1 - math.exp(-u), lambda u: math.exp(u) + u - 1),
}
LEVELS = ("sequence", "sequence_mean", "token")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(n=7, tokens=5, seed=0, dtype=torch.float64):
    """Log-probs of three policies, a mask with holes and an empty row, advantages of every sign, weights."""
    draw = torch.Generator().manual_seed(seed)
    log_prob, ref, old = (-3 * torch.rand(n, tokens, generator=draw, dtype=torch.float64) for _ in range(3))
    mask = (torch.rand(n, tokens, generator=draw) < 0.7).long()
    mask[0], mask[1:, 0] = 0, 1
    advantages = torch.randn(n, generator=draw, dtype=torch.float64)
    advantages[2] = 0
    weights = 2 * torch.rand(n, generator=draw, dtype=torch.float64)
    return log_prob.to(dtype), ref.to(dtype), old.to(dtype), mask, advantages, weights


def loop_rewards(log_prob, ref, old, mask, beta, gamma, level):
    """One list of rewards per row: all its tokens at level token, else one; empty where the row has no token."""
    result = []
    for i in range(len(mask)):
        tokens = [
            beta * (log_prob[i, t] - ref[i, t]).item() + gamma * (log_prob[i, t] - old[i, t]).item()
            for t in range(mask.shape[1])
            if mask[i, t]
        ]
        if level == "token" or not tokens:
            result.append(tokens)
        else:
            result.append([sum(tokens) / (len(tokens) if level == "sequence_mean" else 1)])
    return result


def loop_f_grpo(rewards, advantages, weights, g, conjugate_of_g):
    """Sum over what counts, and how much counts."""
    total = 0.0
    for row, a, w in zip(rewards, advantages.tolist(), weights.tolist(), strict=True):
        for r in row:
            if a > 0:
                total += abs(a) * -w * g(r)
            elif a < 0:
                total += abs(a) * w * conjugate_of_g(r)
    return total, sum(len(row) for row in rewards)


def loop_fdo(rewards, desirable, g, conjugate_of_g):
    aligned = [-g(r) for row, good in zip(rewards, desirable, strict=True) if good for r in row]
    unaligned = [conjugate_of_g(r) for row, good in zip(rewards, desirable, strict=True) if not good for r in row]
    return aligned, unaligned


def test_implicit_reward_by_hand():
    log_prob = torch.tensor([[-1.0, -2.0, -5.0], [-1.0, -1.0, -1.0]])
    ref = torch.tensor([[-1.5, -4.0, 9.0], [-3.0, -1.0, -2.0]])
    old = torch.tensor([[-1.25, -2.25, 9.0], [-1.0, -1.0, -4.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    # Row 0: 0.5 + 2 = 2.5 from ref, 0.25 + 0.25 = 0.5 from old. Row 1: 2 + 0 + 1 = 3 and 3.
    close = torch.testing.assert_close
    close(implicit_reward(log_prob, ref, mask, 0.1), torch.tensor([0.25, 0.3]))
    both = dict(old_log_prob=old, gamma=2.0)
    close(implicit_reward(log_prob, ref, mask, 0.1, **both), torch.tensor([1.25, 6.3]))
    close(implicit_reward(log_prob, ref, mask, 0.1, level="sequence_mean"), torch.tensor([0.125, 0.1]))
    close(
        implicit_reward(log_prob, ref, mask, 0.1, **both, level="token"),
        torch.tensor([[0.05 + 0.5, 0.2 + 0.5, 0.0], [0.2, 0.0, 0.1 + 6.0]]),
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_implicit_reward_against_a_loop(level, gamma):
    log_prob, ref, old, mask, *_ = batch()
    result = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=gamma, level=level)
    rewards = loop_rewards(log_prob, ref, old, mask, 0.3, gamma, level)
    if level == "token":
        expected = torch.zeros_like(result)
        expected[mask.bool()] = tensor([r for row in rewards for r in row])
    else:
        expected = tensor([sum(row) for row in rewards])  # an empty row has reward 0
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", LINKS)
@pytest.mark.parametrize("given", [False, True])
def test_losses_against_a_loop(level, key, given):
    log_prob, ref, old, mask, advantages, weights = batch()
    d = get_divergence(*key)
    reward = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=0.7, level=level)
    rewards = loop_rewards(log_prob, ref, old, mask, 0.3, 0.7, level)
    total, count = loop_f_grpo(rewards, advantages, weights, *LINKS[key])
    loss = f_grpo_loss(reward, advantages, d, weights, response_mask=mask, denominator=11 if given else None)
    assert loss.item() == pytest.approx(total / (11 if given else count))
    unweighted, _ = loop_f_grpo(rewards, advantages, torch.ones(len(mask)), *LINKS[key])
    assert f_grpo_loss(reward, advantages, d, response_mask=mask).item() == pytest.approx(unweighted / count)

    desirable = advantages > 0
    aligned, unaligned = loop_fdo(rewards, desirable.tolist(), *LINKS[key])
    counts = (4, 9) if given else (len(aligned), len(unaligned))
    loss = fdo_loss(reward, desirable, d, response_mask=mask, denominator=counts if given else None)
    assert loss.item() == pytest.approx(sum(aligned) / counts[0] + sum(unaligned) / counts[1])


def test_row_losses_by_hand():
    reward, advantages = tensor([2.0, -1.0, 5.0]), tensor([0.5, -3.0, 0.0])
    pearson = get_divergence("pearson")
    # -0.5 * 2 * 4 = -4; +3 * 1 * (-1 + 1/4) = -2.25; nothing.
    rows = f_grpo_row_losses(reward, advantages, pearson, tensor([4.0, 1.0, 9.0]))
    torch.testing.assert_close(rows, tensor([-4.0, -2.25, 0.0]))
    # -2; -1 + 1/4; 5 + 25/4.
    rows = fdo_row_losses(reward, torch.tensor([True, False, False]), pearson)
    torch.testing.assert_close(rows, tensor([-2.0, -0.75, 11.25]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", [*LINKS, ("pearson_restricted", None), ("neyman", None), ("gan", None)])
def test_gradient_against_finite_differences(level, key):
    log_prob, ref, old, mask, advantages, weights = batch(n=4, tokens=3)
    d = get_divergence(*key)

    def both(log_prob):
        reward = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=0.7, level=level)
        on = f_grpo_loss(reward, advantages, d, weights, response_mask=mask)
        return on + fdo_loss(reward, advantages > 0.2, d, response_mask=mask)

    assert torch.autograd.gradcheck(both, log_prob.requires_grad_())


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("reverse_kl", "variational"),
        ("pearson", "variational"),
        ("neyman", "variational"),
        ("squared_hellinger", "variational"),
        ("kl", "density_ratio"),
        ("reverse_kl", "density_ratio"),
    ],
)
def test_first_gradient_is_that_of_grpo(name, link):
    """With unit slopes, 1/(beta+gamma) L has at pi = pi_old = pi_ref the gradient of seq-mean-token-sum GRPO."""
    log_prob, _, _, mask, advantages, _ = batch()
    mask[0, 0] = 1
    log_prob.requires_grad_()
    same = log_prob.detach()
    reward = implicit_reward(log_prob, same, mask, 0.1, old_log_prob=same, gamma=0.5)
    (ours,) = torch.autograd.grad(f_grpo_loss(reward, advantages, get_divergence(name, link)) / 0.6, log_prob)
    ratio = torch.exp(log_prob - same)
    (grpo,) = torch.autograd.grad((-advantages.unsqueeze(-1) * ratio * mask).sum(-1).mean(), log_prob)
    torch.testing.assert_close(ours, grpo)


def test_jensen_shannon_fdo_is_binary_cross_entropy():
    # log-sigmoid losses on the logit r, each side's mean, shifted by 2 log 2.
    reward, labels = tensor([0.3, -2.0, 1.5, 0.7]), torch.tensor([True, False, True, False])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(reward[labels], torch.ones(2).double()) + bce(reward[~labels], torch.zeros(2).double())
    loss = fdo_loss(reward, labels, get_divergence("jensen_shannon"))
    torch.testing.assert_close(loss, expected - 2 * math.log(2))
    torch.testing.assert_close(fdo_loss(reward, labels, get_divergence("gan")), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_masked_garbage_changes_nothing(level):
    *policies, mask, advantages, weights = batch()
    d = get_divergence("squared_hellinger")

    def run(log_prob, ref, old):
        log_prob = log_prob.clone().requires_grad_()
        reward = implicit_reward(log_prob, ref, mask, 0.3, old_log_prob=old, gamma=0.7, level=level)
        if level == "token":
            reward = torch.where(mask.bool(), reward, log_prob)  # so that garbage reaches the losses too
        loss = f_grpo_loss(reward, advantages, d, weights, response_mask=mask)
        loss = loss + fdo_loss(reward, advantages > 0, d, response_mask=mask)
        return loss, *torch.autograd.grad(loss, log_prob)

    loss, gradient = run(*policies)
    for garbage in (math.nan, math.inf, -1e300):
        dirty = [torch.where(mask.bool(), values, garbage) for values in policies]
        dirty_loss, dirty_gradient = run(*dirty)
        assert torch.equal(dirty_loss, loss) and torch.equal(dirty_gradient, gradient)
    assert gradient[mask == 0].eq(0).all() and gradient[mask == 1].ne(0).any()


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_micro_batches_add_up(level, parts):
    log_prob, ref, _, mask, advantages, weights = batch()
    d = get_divergence("squared_hellinger")
    desirable = advantages > 0
    per_row = mask.sum(-1) if level == "token" else mask.any(-1)
    denominator = per_row.sum().item()
    sides = (per_row[desirable].sum().item(), per_row[~desirable].sum().item())

    def run(rows, denominator, sides):
        reward = implicit_reward(log_prob[rows], ref[rows], mask[rows], 0.3, level=level)
        on = f_grpo_loss(reward, advantages[rows], d, weights[rows], response_mask=mask[rows], denominator=denominator)
        return on + fdo_loss(reward, desirable[rows], d, response_mask=mask[rows], denominator=sides)

    log_prob.requires_grad_()
    whole = run(range(7), None, None)
    split = sum(run([i for i in range(7) if parts[i] == part], denominator, sides) for part in set(parts))
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(whole, log_prob)
    torch.testing.assert_close(torch.autograd.grad(split, log_prob)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", [*LINKS, ("neyman", None), ("kl", "density_ratio")])
def test_micro_batches_and_order_in_float32(level, key):
    """f-HAL, both halves with the whole step's counts: 1e-5 of the largest component over the whole gradient."""
    log_prob, ref, _, mask, advantages, weights = batch(n=48, tokens=64, dtype=torch.float32)
    advantages, weights, desirable = advantages.float(), weights.float(), advantages > 0
    d = get_divergence(*key)
    per_row = mask.sum(-1) if level == "token" else mask.any(-1)
    denominator, sides = per_row.sum().item(), tuple(per_row[side].sum().item() for side in (desirable, ~desirable))

    def gradient(*parts):
        leaf = log_prob.clone().requires_grad_()
        for rows in parts:
            reward = implicit_reward(leaf[rows], ref[rows], mask[rows], 0.1, level=level)
            both = dict(response_mask=mask[rows])
            on = f_grpo_loss(reward, advantages[rows], d, weights[rows], denominator=denominator, **both)
            off = fdo_loss(reward, desirable[rows], d, denominator=sides, **both)
            f_hal_loss(off, on, 0.3).backward()
        return leaf.grad

    whole = gradient(torch.arange(48))
    shuffled = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    for parts in (shuffled.split(5), [shuffled], torch.arange(48).split(1)):
        assert (gradient(*parts) - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(7)))
def test_order_of_rows_changes_nothing(level, order):
    log_prob, ref, _, mask, advantages, weights = batch()
    d = get_divergence("squared_hellinger")

    def losses(rows):
        reward = implicit_reward(log_prob[rows], ref[rows], mask[rows], 0.3, level=level)
        return torch.stack(
            [
                f_grpo_loss(reward, advantages[rows], d, weights[rows], response_mask=mask[rows]),
                fdo_loss(reward, advantages[rows] > 0, d, response_mask=mask[rows]),
            ]
        )

    torch.testing.assert_close(losses(order), losses(list(range(7))), rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_what_does_not_count_gives_zero_with_a_gradient_path(level):
    log_prob, ref, _, mask, advantages, weights = batch()
    d = get_divergence("kl")  # f*(g(0)) is not 0, so an uncounted row would show
    log_prob.requires_grad_()

    def check(mask, advantages, desirable, denominator):
        reward = implicit_reward(log_prob, ref, mask, 0.3, level=level)
        sides = None if denominator is None else (denominator, denominator)
        for loss in (
            f_grpo_loss(reward, advantages, d, weights, response_mask=mask, denominator=denominator),
            fdo_loss(reward, desirable, d, response_mask=mask, denominator=sides) if desirable is not None else None,
        ):
            if loss is not None:
                assert loss.item() == 0
                assert torch.autograd.grad(loss, log_prob, retain_graph=True)[0].eq(0).all()

    nothing = torch.zeros_like(mask)
    for denominator in (None, 5, 0):
        check(nothing, advantages, advantages > 0, denominator)
    check(mask, torch.zeros_like(advantages), None, None)
    # Rows 0 (no token) and 2 (advantage 0) are never touched; row 2 counts, row 0 does not.
    reward = implicit_reward(log_prob, ref, mask, 0.3, level=level)
    (gradient,) = torch.autograd.grad(f_grpo_loss(reward, advantages, d, response_mask=mask), log_prob)
    assert gradient[[0, 2]].eq(0).all() and gradient[1].ne(0).any()


def test_one_sided_and_empty_batches():
    d = get_divergence("pearson")
    reward = tensor([1.0, 2.0])
    assert fdo_loss(reward, torch.tensor([True, True]), d).item() == -1.5
    assert fdo_loss(reward, torch.tensor([False, False]), d).item() == (1.25 + 3) / 2
    assert fdo_loss(reward, torch.tensor([True, True]), d, denominator=(2, 0)).item() == -1.5
    empty = torch.zeros(0, dtype=torch.float64)
    assert f_grpo_loss(empty, empty, d).item() == 0
    assert fdo_loss(empty, empty.bool(), d).item() == 0


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson", "squared_hellinger", "jensen_shannon", "neyman"])
def test_a_row_out_of_range_is_clipped_and_harms_no_other(name):
    d = get_divergence(name)
    low, high = d.range
    huge = 2.0**99
    reward = torch.tensor([huge, -huge, 0.5, -0.5], requires_grad=True)
    clipped, mask = clip_implicit_reward(reward, d)
    assert mask.tolist() == [high < huge, low > -huge, False, False]
    for index, sign in ((0, 1), (1, -1)):
        for advantages in (
            tensor([1.0, 1.0, 1.0, 1.0]),
            tensor([-1.0, -1.0, -1.0, -1.0]),
            tensor([0.0, 0.0, 1.0, 1.0]),
        ):
            kept = [index, 2, 3]
            (gradient,) = torch.autograd.grad(f_grpo_row_losses(reward, advantages, d)[kept].sum(), reward)
            assert torch.isfinite(gradient).all()
            if mask[index] or advantages[index] == 0:
                assert gradient[index] == 0
            alone = torch.tensor([0.5, -0.5], requires_grad=True)
            (expected,) = torch.autograd.grad(f_grpo_row_losses(alone, advantages[2:], d).sum(), alone)
            torch.testing.assert_close(gradient[2:], expected)
        assert clipped[index].item() == pytest.approx(min(max(sign * huge, low), high))


def test_clip_limit_tightens_the_range_symmetrically():
    reward = torch.tensor([-9.0, -3.0, 2.0, 3.0, 50.0], requires_grad=True)
    d = get_divergence("pearson", "density_ratio")
    clipped, mask = clip_implicit_reward(reward, d, limit=3.0)
    assert clipped.tolist() == [-3, -3, 2, 3, 3] and mask.tolist() == [True, False, False, False, True]
    assert torch.autograd.grad(clipped.sum(), reward)[0].tolist() == [0, 1, 1, 1, 0]
    clipped, mask = clip_implicit_reward(reward, d, limit=1000.0)  # never wider than the divergence allows
    assert clipped.tolist() == [-9, -3, 2, 3, 44] and mask.tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision_is_computed_in_float32(level):
    log_prob, ref, old, mask, advantages, weights = batch(dtype=torch.bfloat16)
    d = get_divergence("squared_hellinger")

    def run(cast):
        leaf = cast(log_prob).requires_grad_()
        reward = implicit_reward(leaf, cast(ref), mask, 0.3, old_log_prob=cast(old), gamma=0.7, level=level)
        loss = f_grpo_loss(reward, advantages, d, weights, response_mask=mask)
        return reward, loss, torch.autograd.grad(loss, leaf)[0]

    reward, loss, gradient = run(torch.clone)
    wide_reward, wide_loss, wide_gradient = run(torch.Tensor.float)
    assert reward.dtype == loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert torch.equal(reward, wide_reward) and torch.equal(loss, wide_loss)
    assert torch.equal(gradient, wide_gradient.bfloat16())
    short = reward.detach().bfloat16()
    assert torch.equal(
        f_grpo_loss(short, advantages, d, response_mask=mask),
        f_grpo_loss(short.float(), advantages, d, response_mask=mask),
    )


def test_only_the_policy_gets_gradient():
    tensors = [values.requires_grad_() for values in batch()[:3]]
    _, _, _, mask, advantages, weights = batch()
    advantages.requires_grad_()
    weights.requires_grad_()
    reward = implicit_reward(*tensors[:2], mask, 0.3, old_log_prob=tensors[2], gamma=0.7)
    f_grpo_loss(reward, advantages, get_divergence("kl"), weights, response_mask=mask).backward()
    assert tensors[0].grad is not None
    assert all(values.grad is None for values in (*tensors[1:], advantages, weights))


@pytest.mark.parametrize("lam", [0, 0.0, 0.25, 1.0])
def test_f_hal_mixes(lam):
    preference, on_policy = tensor(3.0), tensor(-1.0)
    assert f_hal_loss(preference, on_policy, lam).item() == lam * 3.0 - (1 - lam)


def test_f_hal_at_the_ends_is_the_one_loss_bit_for_bit():
    loss, other = torch.rand(()), torch.tensor(math.nan)
    assert torch.equal(f_hal_loss(other, loss, 0.0), loss)
    assert torch.equal(f_hal_loss(loss, other, 1.0), loss)


X = torch.zeros(2, 3)
R = torch.zeros(2)
B = torch.tensor([True, False])
D = get_divergence("kl")
BAD = torch.tensor([0.0, math.nan])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit_reward(X, X, X, 0.0), "beta=0.0 must be positive"),
        (lambda: implicit_reward(X, X, X, math.nan), "beta=nan"),
        (lambda: implicit_reward(X, X, X, math.inf), "beta=inf"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=-1.0), r"^gamma=-1.0 must be >= 0"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=math.inf, old_log_prob=X), r"^gamma=inf must be >= 0"),
        (lambda: clip_implicit_reward(torch.tensor([0.0, math.inf]), D), r"not finite in 1 rows, .* \[1\]"),
        (lambda: clip_implicit_reward(torch.tensor([-math.inf, 0.0]), D), r"not finite in 1 rows, .* \[0\]"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=1.0), "old_log_prob=None with gamma=1.0"),
        (lambda: implicit_reward(X, X, X, 0.1, level="row"), "unknown level='row'"),
        (lambda: implicit_reward(R, R, R, 0.1), r"log_prob must have shape \(n, T\), got \(2,\)"),
        (lambda: implicit_reward(X, X[:1], X, 0.1), r"ref_log_prob has shape \(1, 3\), which must be \(2, 3\)"),
        (lambda: implicit_reward(X, X, X[:, :1], 0.1), r"response_mask has shape \(2, 1\)"),
        (lambda: implicit_reward(X, X, X, 0.1, gamma=1.0, old_log_prob=R), r"old_log_prob has shape \(2,\)"),
        (lambda: implicit_reward(X, X + BAD[:, None], X + 1, 0.1), r"not finite in 1 rows, the first of them \[1\]"),
        (lambda: implicit_reward(X, X + BAD[:, None], X + 1, 0.1, level="token"), r"first of them \[1\]"),
        (lambda: clip_implicit_reward(BAD, D), r"implicit_reward is not finite in 1 rows.*\[1\]"),
        (lambda: clip_implicit_reward(R, D, 0.0), "limit=0.0 must be positive"),
        (lambda: f_grpo_loss(BAD, R, D), r"implicit_reward is not finite in 1 rows.*\[1\]"),
        (lambda: f_grpo_loss(R - torch.inf, R, D), r"implicit_reward is not finite in 2 rows"),
        (lambda: f_grpo_loss(R, BAD, D), "advantages or weights is not finite"),
        (lambda: f_grpo_loss(R, R, D, BAD), "advantages or weights is not finite"),
        (lambda: f_grpo_loss(R, R[:1], D), r"advantages has shape \(1,\), which must be \(2,\)"),
        (lambda: f_grpo_loss(R, R, D, X), r"weights has shape \(2, 3\)"),
        (lambda: f_grpo_loss(R, R, D, response_mask=X[:1]), r"response_mask \(1, 3\) must be \(n, T\) with n = 2"),
        (lambda: f_grpo_loss(X, R, D), "level token requires it"),
        (lambda: f_grpo_loss(X, R, D, response_mask=X[:, :2]), r"response_mask has shape \(2, 2\)"),
        (lambda: f_grpo_loss(X[None], R, D), r"implicit_reward must have shape \(n,\) or \(n, T\), got \(1, 2, 3\)"),
        (lambda: f_grpo_loss(R, R, D, denominator=0), "denominator=0.0 must be positive"),
        (lambda: f_grpo_loss(R, R, D, denominator=-2), "denominator=-2.0 must be positive"),
        (lambda: f_grpo_loss(R, R, D, denominator=math.nan), "denominator=nan"),
        (lambda: fdo_loss(BAD, B, D), r"implicit_reward is not finite in 1 rows.*\[1\]"),
        (lambda: fdo_loss(R, B.float(), D), "desirable must be a bool tensor, got torch.float32"),
        (lambda: fdo_loss(R, B[:1], D), r"desirable has shape \(1,\)"),
        (lambda: fdo_loss(X, B, D), "level token requires it"),
        (lambda: fdo_loss(R, B, D, denominator=2), "denominator=2 must be a pair"),
        (lambda: fdo_loss(R, B, D, denominator=(1, 0)), "denominator=0.0 must be positive"),
        (lambda: f_hal_loss(R[0], R[0], 1.5), "lam=1.5 must lie in"),
        (lambda: f_hal_loss(R[0], R[0], -0.1), "lam=-0.1 must lie in"),
        (lambda: f_hal_loss(R[0], R[0], math.nan), "lam=nan"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_kldo_of_one_side_alone_has_a_finite_gradient():
    for side in (True, False):
        reward = torch.tensor([0.3, -0.2], requires_grad=True)
        loss = kldo_loss(reward, torch.tensor([side, side]))
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(reward.grad).all() and reward.grad.abs().sum() > 0


def test_slopes_of_tokens_of_both_signs_add_up_and_an_expanded_gradient_is_taken():
    # pearson: (f*.g)'(r) = 1 + r/2, which is -1 at r = -4 and 1 at r = 0.
    reward, mask = torch.tensor([[-4.0, 0.0]], requires_grad=True), torch.ones(1, 2)
    loss = f_grpo_loss(reward, torch.tensor([-1.0]), get_divergence("pearson"), response_mask=mask)
    assert row_slopes(loss, reward).tolist() == [1.0]  # two of 1, over two tokens
    plain = torch.tensor([1.0, -2.0], requires_grad=True)
    assert row_slopes(-plain.sum(), plain).tolist() == [1.0, 1.0]
