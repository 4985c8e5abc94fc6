"""The example of docs/concepts.md by hand: plain Python, from the formulas that the page states."""

import math
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text()
BETA, LAM = 0.1, 0.5


def rows(first_column: str) -> list[list[float]]:
    """The numbers of the table whose head begins so, without its names."""
    head, *_ = (line for line in PAGE.splitlines() if line.startswith(first_column))
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[float(cell) for cell in line.strip("|").split("|")[1:]] for line in lines]


def sentence(pattern: str) -> list[float]:
    """The numbers that a sentence of the page has in the place of each #."""
    found = re.search(re.escape(pattern).replace(r"\#", r"(-?\d+(?:\.\d+)?)").replace(r"\ ", r"\s+"), PAGE)
    assert found, pattern
    return [float(number) for number in found.groups()]


@pytest.fixture
def group() -> list[dict[str, float]]:
    """The four responses with everything that follows from what is given of them."""
    given = [dict(zip(("R", "tokens", "pi", "ref"), row, strict=True)) for row in rows("| response | R | tokens")]
    mu, sigma = mean(row["R"] for row in given), stdev(row["R"] for row in given)
    assert sentence("The mean reward is #, the standard deviation (with n - 1) #.") == pytest.approx(
        [mu, sigma], abs=5e-4
    )
    for row in given:
        row["a"] = (row["R"] - mu) / sigma
        sign = 1 if row["a"] > 0 else -1
        row["score"] = math.exp(sign * row["R"] - row["pi"] / row["tokens"])
        row["r"] = BETA * (row["pi"] - row["ref"])
        row["slope"] = 1 if sign > 0 else 1 + row["r"] / 2
        logistic = 1 / (1 + math.exp(-row["r"]))
        row["smooth"] = 1 - logistic if sign > 0 else logistic  # slopes of jensen_shannon
        row["term"] = row["r"] if sign > 0 else row["r"] + row["r"] ** 2 / 4
    for row in given:
        side = [other for other in given if other["a"] * row["a"] > 0]
        row["w"] = len(side) * row["score"] / sum(other["score"] for other in side)
    return given


def test_the_table_of_results_is_what_the_formulas_give(group):
    found = rows("| response | a | w")
    assert len(found) == len(group) == 4
    for row, numbers in zip(group, found, strict=True):
        pull = row["a"] * row["w"] / 4
        expected = [row["a"], row["w"], row["r"], row["slope"], pull * row["slope"], row["a"] / 4, pull * row["smooth"]]
        assert numbers == pytest.approx(expected, abs=6e-4)


def test_loss_and_estimate_are_what_the_formulas_give(group):
    loss = sum(-row["a"] * row["w"] * row["term"] for row in group) / 4  # |a| (-w g) above, |a| (+w f*(g)) below
    above, below = ([row for row in group if sign * row["a"] > 0] for sign in (1, -1))
    means = [sum(row["w"] * row["term"] for row in side) / sum(row["w"] for row in side) for side in (above, below)]
    assert sentence("the loss of the group is #, and the divergence estimate #:") == pytest.approx(
        [loss, means[0] - means[1]], abs=6e-4
    )


def test_the_slope_share_is_what_the_formulas_give(group):
    up, down = sentence("the chosen response # nats above the reference, the rejected one # nats below it.")
    chosen, rejected = BETA * up, -BETA * down
    assert sentence("r is # and #,") == pytest.approx([chosen, rejected])
    losses = [-chosen, rejected + rejected**2 / 4]
    assert sentence("their losses are # and #.") == pytest.approx(losses, abs=6e-4)
    on = (1 - LAM) * sum(abs(row["a"]) * row["w"] * row["slope"] for row in group) / 4
    off = LAM * (1 + 1 + rejected / 2)
    assert sentence("pulls with # in sum, the preference half with #: the slope share is #.") == pytest.approx(
        [on, off, on / (on + off)], abs=6e-4
    )
    # At lambda = s the halves are equal: (1 - s) on/(1 - lambda) = s off/lambda.
    (lam,) = sentence("set lambda to #.")
    assert (1 - lam) * on / (1 - LAM) == pytest.approx(lam * off / LAM, abs=2e-3)


def test_a_sentence_that_is_not_there_is_noticed():
    with pytest.raises(AssertionError):
        sentence("The loss of the batch is #.")
