"""Group advantages and weights against loops over groups written from the definitions."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_plugin.advantages import group_advantages, group_weights


def members(ids):
    return [[i for i, other in enumerate(ids) if other == group] for group in dict.fromkeys(ids)]


def loop_advantages(rewards, ids, normalize_by_std=True, eps=1e-6):
    result = np.zeros(len(rewards))
    for rows in members(ids):
        group = np.array([rewards[i] for i in rows], dtype=np.float64)
        if group.max() > group.min():
            centred = group - group.mean()
            result[rows] = centred / (group.std(ddof=1) + eps) if normalize_by_std else centred
    return result


def loop_weights(rewards, ids, mode="none", log_pi=None, cap=math.inf, temperature=1.0):
    """Each side by itself: a plain softmax, scaled, then min(cap, c w) with c found by bisection in log space."""
    result = np.zeros(len(rewards))
    advantages = loop_advantages(rewards, ids)
    for rows in members(ids):
        for sign in (1, -1):
            side = [i for i in rows if sign * advantages[i] > 0]
            if not side:
                continue
            score = np.zeros(len(side))
            if mode != "none":
                score = np.array([sign * rewards[i] / temperature for i in side])
            if mode == "softmax_is":
                score = score - np.array([log_pi[i] for i in side])
            low, high = -score.max() - 60, -score.min() + 60

            def capped(log_c, score=score):
                return np.exp(np.minimum(log_c + score, math.log(cap)))

            for _ in range(300):
                middle = (low + high) / 2
                low, high = (middle, high) if capped(middle).mean() < 1 else (low, middle)
            result[side] = capped(high)
    return result


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def matrix(log_pi_rows):
    """Ragged token log-probs as a padded matrix with a mask."""
    width = max(len(row) for row in log_pi_rows)
    values = torch.full((len(log_pi_rows), width), math.nan, dtype=torch.float64)  # padding must not be read
    mask = torch.zeros(len(log_pi_rows), width, dtype=torch.long)
    for i, row in enumerate(log_pi_rows):
        values[i, : len(row)] = tensor(row)
        mask[i, : len(row)] = 1
    return values, mask


rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, -2.0, 3.25]), st.sampled_from("abcd"), st.floats(-40, 0)),
    min_size=1,
    max_size=24,
)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 5.0, 0.0, 2.0, 5.0, 7.0])
    ids = ["a", "b", "a", "a", "b", "c"]
    # Group a: mean 1, squares 0 + 1 + 1 over n - 1 = 2, std 1. Group b is flat, c is a single row.
    expected = torch.tensor([0.0, 0.0, -1 / (1 + 1e-6), 1 / (1 + 1e-6), 0.0, 0.0])
    result = group_advantages(rewards, ids)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)
    assert result[[0, 1, 4, 5]].eq(0).all()
    torch.testing.assert_close(group_advantages(rewards, ids, False), torch.tensor([0.0, 0.0, -1.0, 1.0, 0.0, 0.0]))
    assert group_advantages(rewards.double(), ids).dtype == torch.float64


@settings(deadline=None)
@given(rows, st.booleans())
def test_advantages_against_a_loop(data, normalize_by_std):
    rewards, ids, _ = zip(*data, strict=True)
    expected = loop_advantages(rewards, ids, normalize_by_std)
    np.testing.assert_allclose(group_advantages(tensor(rewards), ids, normalize_by_std), expected, atol=1e-12)


@settings(deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_order_of_rows_and_names_of_groups_do_not_matter(data, random):
    rewards, ids, log_pi = zip(*data, strict=True)
    order = list(range(len(data)))
    random.shuffle(order)
    log_pi, mask = matrix([[value] for value in log_pi])
    arguments = dict(mode="softmax_is", weight_cap=1.5)
    advantages = group_advantages(tensor(rewards), ids)
    weights = group_weights(tensor(rewards), ids, old_log_prob=log_pi, response_mask=mask, **arguments)
    moved = tensor(rewards)[order]
    other_names = [("prompt", "dcba".index(ids[i])) for i in order]
    torch.testing.assert_close(group_advantages(moved, other_names), advantages[order])
    moved_weights = group_weights(
        moved, other_names, old_log_prob=log_pi[order], response_mask=mask[order], **arguments
    )
    torch.testing.assert_close(moved_weights, weights[order])


def test_a_reward_at_the_mean_is_zero_whatever_the_order():
    for rewards in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.1, 0.3]):
        result = group_advantages(tensor(rewards), [0, 0, 0])
        assert result[rewards.index(0.2)] == 0  # the float64 mean of these is not 0.2 in every order
        assert group_weights(tensor(rewards), [0, 0, 0], "softmax")[rewards.index(0.2)] == 0


@pytest.mark.parametrize("value", [0.1, 1e-30, -3.3, 1e30])
def test_flat_groups_are_exactly_zero(value):
    rewards = torch.full((7,), value)
    assert group_advantages(rewards, [0] * 7).eq(0).all()
    assert group_advantages(rewards, [0] * 7, eps=0.0).eq(0).all()
    assert group_weights(rewards, [0] * 7, "softmax").eq(0).all()


def test_every_kind_of_group_id_gives_the_same():
    rewards = torch.tensor([0.0, 1.0, 4.0, 2.0, 2.5])
    ids = [7, 9, 7, 9, 7]
    expected = loop_advantages(rewards.tolist(), ids)
    kinds = [
        ids,
        tuple(ids),
        torch.tensor(ids),
        np.array(ids),
        np.array(ids, dtype=np.uint8),
        np.array([str(i) for i in ids]),
        np.array([str(i) for i in ids], dtype=object),
        np.array(ids, dtype=np.float64),
        [("x", i) for i in ids],
    ]
    for kind in kinds:
        np.testing.assert_allclose(group_advantages(rewards, kind), expected, rtol=1e-6)


def test_weights_by_hand():
    rewards = torch.tensor([2.0, 1.0, -3.0, 0.0, 5.0])
    ids = ["a", "a", "a", "a", "b"]
    # Mean of a is 0: rows 0 and 1 are above, row 2 below, row 3 at the mean.
    e = math.e
    softmax = torch.tensor([2 * e / (e + 1), 2 / (e + 1), 1.0, 0.0, 0.0])
    torch.testing.assert_close(group_weights(rewards, ids), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(group_weights(rewards, ids, "softmax"), softmax)
    # Temperature 2 halves the difference of rewards.
    half = math.sqrt(e)
    warm = torch.tensor([2 * half / (half + 1), 2 / (half + 1), 1.0, 0.0, 0.0])
    torch.testing.assert_close(group_weights(rewards, ids, "softmax", weight_temperature=2.0), warm)
    # log pi_old of row 0 is -2 over four tokens, of row 1 -1 over one: sums -2 and -1, means -0.5 and -1.
    log_pi, mask = matrix([[-0.5] * 4, [-1.0], [-3.0], [-3.0], [-3.0]])
    up, even = 2 * e**2 / (e**2 + 1), 2 * half / (half + 1)
    for level, first in (("sequence", up), ("token_mean", even)):
        weights = group_weights(rewards, ids, "softmax_is", log_pi, mask, old_log_prob_level=level)
        torch.testing.assert_close(weights, torch.tensor([first, 2 - first, 1.0, 0.0, 0.0]))


@settings(deadline=None)
@given(
    rows,
    st.sampled_from(["none", "softmax", "softmax_is"]),
    st.sampled_from([None, 1.0, 1.01, 1.5, 2.0, 10.0]),
    st.sampled_from([0.1, 1.0, 3.0]),
)
def test_weights_against_a_loop(data, mode, cap, temperature):
    rewards, ids, log_pi = zip(*data, strict=True)
    values, mask = matrix([[value] for value in log_pi])
    weights = group_weights(tensor(rewards), ids, mode, values, mask, cap, weight_temperature=temperature)
    expected = loop_weights(rewards, ids, mode, log_pi, math.inf if cap is None else cap, temperature)
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    # Each side of each group keeps the mean 1, and nothing exceeds the cap.
    advantages = loop_advantages(rewards, ids)
    for group in members(ids):
        for sign in (1, -1):
            side = [i for i in group if sign * advantages[i] > 0]
            if side:
                assert weights[side].mean().item() == pytest.approx(1.0)
    assert cap is None or weights.max() <= cap


def test_capping_survives_weights_that_underflow():
    # exp(-2000) is 0 in float64; the three smaller rows still share by their ratios the 4 - 1.5 that the cap leaves.
    rewards = tensor([3000.0, 1000.0, 1000.0 + math.log(2.0), 1000.0, -9000.0])
    weights = group_weights(rewards, [0] * 5, "softmax", weight_cap=1.5)
    torch.testing.assert_close(weights, tensor([1.5, 2.5 / 4, 2.5 / 2, 2.5 / 4, 1.0]))


def test_binary_rewards_make_softmax_equal_none():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    ids = [0, 0, 0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(group_weights(rewards, ids, "softmax"), group_weights(rewards, ids, "none"))


def test_masked_garbage_and_rows_without_tokens():
    rewards = torch.tensor([1.0, 1.0, 0.0])
    values = torch.tensor([[-1.0, math.nan], [math.inf, -math.inf], [-2.0, -2.0]])
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]])
    weights = group_weights(rewards, [0, 0, 0], "softmax_is", values, mask)
    # Row 1 has no token, so log pi_old = 0 against -1: softmax of (1, 0), times 2.
    torch.testing.assert_close(weights, torch.tensor([2 * math.e / (1 + math.e), 2 / (1 + math.e), 1.0]))


def test_no_gradient_and_no_rows():
    rewards = torch.tensor([0.0, 1.0], requires_grad=True)
    assert not group_advantages(rewards, [0, 0]).requires_grad
    assert not group_weights(rewards, [0, 0], "softmax").requires_grad
    assert group_advantages(torch.zeros(0), []).shape == (0,)
    assert group_weights(torch.zeros(0), [], "softmax", weight_cap=2.0).shape == (0,)


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_advantages(torch.zeros(2), [1]), r"rewards \(2,\) and group_ids \(1,\)"),
        (lambda: group_advantages(torch.zeros(2, 1), [1, 2]), r"rewards \(2, 1\) and group_ids \(2,\)"),
        (lambda: group_advantages(torch.tensor([0.0, math.nan]), [1, 2]), r"rewards is not finite in 1 rows.*\[1\]"),
        (lambda: group_advantages(torch.tensor([math.inf, 0.0]), [1, 2]), r"rewards is not finite in 1 rows.*\[0\]"),
        (lambda: group_advantages(torch.zeros(2), [1, 2], eps=-1.0), "eps=-1.0"),
        (lambda: group_advantages(torch.zeros(2), [[1], [2]]), "group_ids must be hashable"),
        (lambda: group_advantages(torch.zeros(2), [torch.tensor(1), torch.tensor(1)]), "pass one tensor"),
        (lambda: group_weights(torch.zeros(2), [1, 2], "soft"), "unknown mode='soft'"),
        (lambda: group_weights(torch.zeros(2), [1, 2], weight_cap=0.5), "weight_cap=0.5 must be >= 1"),
        (lambda: group_weights(torch.zeros(2), [1, 2], weight_cap=math.nan), "weight_cap=nan"),
        (lambda: group_weights(torch.zeros(2), [1, 2], weight_temperature=0.0), "weight_temperature=0.0"),
        (lambda: group_weights(torch.zeros(2), [1, 2], "softmax_is"), "old_log_prob=None with mode='softmax_is'"),
        (lambda: group_weights(torch.zeros(2), [1, 2], "softmax_is", ONES), "response_mask=None"),
        (lambda: group_weights(torch.zeros(2), [1, 2], "softmax_is", ONES, ONES[:, :2]), r"\(2, 3\).*\(2, 2\)"),
        (lambda: group_weights(torch.zeros(3), [1, 2, 3], "softmax_is", ONES, ONES), "n = 3 as in rewards"),
        (
            lambda: group_weights(torch.zeros(2), [1, 2], "softmax_is", ONES, ONES, old_log_prob_level="mean"),
            "unknown old_log_prob_level='mean'",
        ),
        (
            lambda: group_weights(torch.zeros(2), [1, 2], "softmax_is", ONES * math.nan, ONES),
            "old_log_prob is not finite",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def steps_of_python(function) -> int:
    """Bytecode instructions that a call executes, in all of the frames that it enters."""
    steps = 0

    def count(frame, event, given):
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    sys.settrace(count)
    try:
        function()
    finally:
        sys.settrace(None)
    return steps


@pytest.mark.parametrize("as_names", [False, True], ids=["tensor", "names"])  # verl gives names in an array of objects
@pytest.mark.parametrize("mode", [None, "softmax", "softmax_is"])
def test_there_is_no_loop_over_rows(mode, as_names):
    def steps(n):
        generator = torch.Generator().manual_seed(0)
        ids = torch.arange(n) % 50  # the prompts' number stays; a loop over them is allowed
        rewards = torch.randn(n, generator=generator)
        ids = np.array([f"prompt-{i}" for i in ids.tolist()], dtype=object) if as_names else ids
        log_prob, mask = -torch.rand(n, 3, generator=generator), torch.ones(n, 3, dtype=torch.int64)
        if mode is None:
            return steps_of_python(lambda: group_advantages(rewards, ids))
        return steps_of_python(lambda: group_weights(rewards, ids, mode, log_prob, mask, weight_cap=2.0))

    assert steps(20_000) < steps(1_000) + 4_000


@pytest.mark.parametrize(
    "rewards, cap, expected",
    [  # the excess of two rows at once goes to the rest, in proportion, also where less than one row's mean is left
        ([20.0, 20.0, 1.0, 1.0, 1.0, 1.0], 2.0, [2.0, 2.0, 0.5, 0.5, 0.5, 0.5]),
        ([20.0, 20.0, 1.0], 1.25, [1.25, 1.25, 0.5]),
    ],
)
def test_two_rows_over_the_cap_at_once_leave_the_mean_at_one(rewards, cap, expected):
    below = [-1000.0]
    found = group_weights(torch.tensor(rewards + below), ["a"] * (len(rewards) + 1), "softmax", weight_cap=cap)
    assert found.tolist() == pytest.approx([*expected, 1.0], rel=1e-6)


def test_an_infinite_temperature_is_refused():
    with pytest.raises(ValueError, match="weight_temperature=inf"):
        group_weights(torch.tensor([0.0, 1.0]), ["a", "a"], "softmax", weight_temperature=math.inf)


@pytest.mark.parametrize("value, rows", [(-0.1, 3), (0.1, 7), (-1234.567, 7), (1e8 + 0.1, 3), (1e-9, 7)])
def test_equal_rewards_have_advantage_exactly_zero_whatever_their_sign_and_size(value, rows):
    rewards = torch.full((rows,), value, dtype=torch.float64)
    assert group_advantages(rewards, ["a"] * rows).tolist() == [0.0] * rows
    assert group_weights(rewards, ["a"] * rows, "softmax").tolist() == [0.0] * rows


def test_log_probs_of_long_responses_are_added_up_in_float64():
    tokens = 2**14
    old = torch.full((2, tokens), -0.1)
    old[1, 0] = -1e6  # in float32 the tokens after it would round
    expected = old.double().sum(-1) / tokens
    found = group_weights(
        torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64),
        ["a"] * 3,
        "softmax_is",
        torch.cat([old, old[:1]]),
        torch.ones(3, tokens),
    )
    ratio = math.exp(expected[0].item() - expected[1].item())
    assert (found[1] / found[0]).item() == pytest.approx(ratio, rel=1e-9)
