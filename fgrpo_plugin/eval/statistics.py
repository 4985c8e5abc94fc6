"""What is made of several samples of a problem, or of several sets; intervals are in fgrpo_plugin/intervals.py."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence


def pass_at_k(right: int, samples: int, k: int) -> float:
    """Share of draws of k of a problem's samples with a right one among them: 1 - C(n - c, k) / C(n, k).

    The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Args:
        right: how many of them are right, c.
        samples: how many there are, n.
        k: how many are drawn.

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"{right} right of {samples} samples at k={k}: not 0 <= c <= n and 1 <= k <= n.")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_at_k(answers: Sequence[int | None], right: Collection[int], k: int) -> float:
    """Chance that the most frequent of k answers is right: the mean over the samples' blocks of k, in their order.

    Answers that are as frequent as one another share the vote. A sample without an answer does not vote; where none of
    k has one, nothing is right.

    Args:
        answers: of each sample the number of its answer, equal for equal answers; None has none.
        right: the numbers of right answers.
        k: samples that vote.

    Raises:
        ValueError: not 1 <= k <= the samples.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"a vote of {k} of {len(answers)} samples.")
    blocks = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    found = []
    for block in blocks:
        votes = Counter(answer for answer in block if answer is not None)
        first = [answer for answer, count in votes.items() if count == max(votes.values())]
        found.append(sum(answer in right for answer in first) / len(first) if first else 0.0)
    return sum(found) / len(found)


def mean_ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each model's rank on a set, 1 the best and ties averaged, as its mean over the sets.

    Args:
        scores: model -> set -> score, the same sets for each.
    """
    sets, scores = _sets(scores), _even(scores)
    ranks = {
        name: {
            model: 1 + sum(scores[other][name] > own[name] for other in scores)
            + (sum(scores[other][name] == own[name] for other in scores) - 1) / 2
            for model, own in scores.items()
        }
        for name in sets
    }  # fmt: skip
    return {model: sum(ranks[name][model] for name in sets) / len(sets) for model in scores}


def relative_overall(scores: Mapping[str, Mapping[str, float]], base: str) -> dict[str, float | None]:
    """Each set's scores with the base model at 0 and the best model at 100, as their mean over the sets.

    The paper's Relative Overall as it is known second-hand. A set on which no model is better than the base has no such
    scale and is left out; None where none has one.

    Args:
        scores: model -> set -> score, the same sets for each.
        base: the base model's name.

    Raises:
        ValueError: the base is none of the models.
    """
    if base not in scores:
        raise ValueError(f"the base {base} is none of the models {', '.join(scores)}.")
    scores = _even(scores)
    best = {name: max(own[name] for own in scores.values()) for name in _sets(scores)}
    scaled = [name for name in best if best[name] > scores[base][name]]
    return {
        model: sum((own[name] - scores[base][name]) / (best[name] - scores[base][name]) for name in scaled)
        * 100 / len(scaled) if scaled else None
        for model, own in scores.items()
    }  # fmt: skip


def _even(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Without the last digits: two means of equal sums of problems may differ there, and are a tie."""
    return {model: {name: round(score, 12) for name, score in own.items()} for model, own in scores.items()}


def _sets(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    every = [sorted(own) for own in scores.values()]
    if not every or not every[0] or any(own != every[0] for own in every):
        raise ValueError("ranks need at least one set, and the same sets of every model.")
    return every[0]
