"""The table of mathematical problems: every model on every set, their mean ranks and Relative Overall."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.scores import MATH, check_k, chosen_ks, comparable
from fgrpo_plugin.eval.statistics import majority_at_k, mean_ranks, pass_at_k, relative_overall
from fgrpo_plugin.intervals import Measure


@dataclass(frozen=True)
class SetResult:
    """A model on a set.

    Attributes:
        measures: `pass@k` and `maj@k` of the k that were asked for -> their means.
        problems: how many.
        answered: share of responses with an answer.
        cut: share of responses that did not end by themselves.
        tokens: mean length of a response; None where a server did not say.
        slow: responses that math-verify had too little time for; they count as wrong.
    """

    measures: dict[str, Measure]
    problems: int
    answered: float
    cut: float
    tokens: float | None
    slow: int


def set_result(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> SetResult:
    """The measures of scored rows; pass@1 always, pass@k and maj@k for each k above 1.

    Raises:
        ValueError: a k above the number of samples.
    """
    samples = len(rows[0]["right"])
    check_k(ks, samples)
    measures = {}
    for k in sorted({1, *ks}):
        measures[f"pass@{k}"] = Measure.of([pass_at_k(sum(row["right"]), samples, k) for row in rows])
    for k in sorted({*ks} - {1}):
        voted = [majority_at_k(row["vote"], _right_votes(row), k) for row in rows]
        measures[f"maj@{k}"] = Measure.of(voted)
    every = [(vote, ended) for row in rows for vote, ended in zip(row["vote"], row["ended"], strict=True)]
    tokens = [count for row in rows for count in row["tokens"]]
    return SetResult(
        measures,
        len(rows),
        answered=sum(vote is not None for vote, _ in every) / len(every),
        cut=sum(not ended for _, ended in every) / len(every),
        tokens=None if None in tokens else statistics.fmean(tokens),
        slow=sum(len(row["slow"]) for row in rows),
    )


def _right_votes(row: Mapping[str, Any]) -> set[int]:
    return {vote for vote, right in zip(row["vote"], row["right"], strict=True) if right}


@dataclass(frozen=True)
class Evaluation:
    """Everything that a folder holds.

    Attributes:
        results: model -> set -> result, in the order of names.
        ks: of pass@k and maj@k.
    """

    results: dict[str, dict[str, SetResult]]
    ks: tuple[int, ...]


def read_evaluation(
    folder: Path,
    ks: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    sets: Sequence[str] | None = None,
) -> Evaluation:
    """Read the scores of every model in a folder.

    Args:
        folder: of `fgrpo eval math`.
        ks: of pass@k and maj@k; None is the number of samples.
        only: names of models, in the order of the table; None is all that are there.
        sets: names of sets; None is all that are there.

    Raises:
        ValueError: there are none, sets have other numbers of samples and no k is given, a model lacks a set, or two
            were sampled or asked differently.
    """
    found = comparable(folder, MATH, only, sets)
    chosen = chosen_ks(found, ks)
    return Evaluation(
        {name: {one: set_result(own[one]["rows"], chosen) for one in own} for name, own in found.items()}, chosen
    )


HEAD = ("set", "model", "problems")
TAIL = ("with an answer", "cut", "tokens")


def set_table(evaluation: Evaluation, base: str | None) -> tuple[list[str], list[list[str]]]:
    """Head and rows: every model on every set; against the base by a paired bootstrap of pass@1."""
    results = evaluation.results
    first = next(iter(results.values()))
    measures = list(next(iter(first.values())).measures)
    against = [f"pass@1 - {base}"] if base is not None and len(results) > 1 else []
    rows = []
    for one in first:
        for model, sets in results.items():
            result = sets[one]
            difference: list[str] = []
            if against:
                gain = result.measures["pass@1"].minus(results[str(base)][one].measures["pass@1"])
                difference = ["" if model == base else gain.signed()]
            tokens = "-" if result.tokens is None else f"{result.tokens:.0f}"
            shown = (str(result.measures[name]) for name in measures)
            tail = (f"{result.answered:.3f}", f"{result.cut:.3f}", tokens)
            rows.append([one, model, str(result.problems), *shown, *difference, *tail])
    return [*HEAD, *measures, *against, *TAIL], rows


def overall_table(evaluation: Evaluation, base: str | None) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each model over all sets."""
    scores = {
        model: {one: result.measures["pass@1"].mean for one, result in sets.items()}
        for model, sets in evaluation.results.items()
    }
    ranks = mean_ranks(scores)
    relative = relative_overall(scores, base) if base is not None else dict.fromkeys(scores)
    rows = []
    for model, own in scores.items():
        value = relative[model]
        shown = "-" if value is None else f"{value:.1f}"
        rows.append([model, f"{statistics.fmean(own.values()):.3f}", f"{ranks[model]:.2f}", shown])
    return ["model", "mean pass@1", "mean rank", f"Relative Overall (base {base or 'not named'})"], rows
