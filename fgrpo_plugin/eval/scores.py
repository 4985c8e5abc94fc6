"""Files of scores: what an evaluation wrote beside its responses, read together where it can be compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo_plugin.foreign_text import markdown_text

SCORES = ".scores.json"
"""How a file of scores ends, behind the name of its set."""
MATH, SAFETY = "math", "safety"
"""Kinds of evaluations, each a command."""
Scores = dict[str, dict[str, dict[str, Any]]]
"""Model -> set -> what its file holds, in the order of names."""


def read_scores(folder: Path, sets: Sequence[str] | None = None) -> dict[str, Scores]:
    """Every file of scores in a folder.

    Args:
        folder: of evaluations, of one kind or of several.
        sets: names of sets; None is all that are there.

    Returns:
        Kind -> its scores; no kind that is not there.

    Raises:
        ValueError: a file is spoilt, empty, or was copied to another name.
    """
    found: dict[str, Scores] = {}
    for file in sorted(folder.glob(f"*/*{SCORES}")):
        model, one = file.parent.name, file.name.removesuffix(SCORES)
        if sets is not None and one not in sets:
            continue
        try:
            scores = json.loads(file.read_text())
            if (scores["model"], scores["set"]) != (model, one):
                raise ValueError(f"it is of {scores['model']} on {scores['set']}, not of {model} on {one}")
            if not scores["rows"] or not scores["rows"][0]["ended"]:
                raise ValueError("it has no rows")
            found.setdefault(scores.get("kind", MATH), {}).setdefault(model, {})[one] = scores
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error}); evaluate it again.") from None
    return found


def comparable(folder: Path, kind: str, only: Sequence[str] | None = None, sets: Sequence[str] | None = None) -> Scores:
    """The scores of one kind, of models that were sampled, asked and scored alike.

    Args:
        folder: of `fgrpo eval math` or `fgrpo eval safety`.
        kind: of the evaluation.
        only: names of models, in the order of the table; None is all that are there.
        sets: names of sets; None is all that are there.

    Raises:
        ValueError: there are none, a model lacks a set, or two cannot be compared.
    """
    found = read_scores(folder, sets).get(kind, {})
    names = list(only) if only is not None else list(found)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{folder} has no scores of {', '.join(missing)}; it has {', '.join(found) or 'none'}.")
    if not names:
        raise ValueError(f"{folder} holds no scores; make them: fgrpo eval {kind} MODEL --data FILE -o {folder}")
    found = {name: found[name] for name in names}
    _check_alike(found)
    return found


def chosen_ks(found: Scores, ks: Sequence[int] | None) -> tuple[int, ...]:
    """The k that are shown: those that are asked for, or the number of samples.

    Raises:
        ValueError: none is asked for and sets have other numbers of samples, or there are too few for one.
    """
    samples = {one: len(scores["rows"][0]["ended"]) for one, scores in next(iter(found.values())).items()}
    if not ks and len(set(samples.values())) > 1:
        counts = ", ".join(f"{one} {count}" for one, count in samples.items())
        raise ValueError(f"the sets have other numbers of samples ({counts}); say which k to show: --k")
    return tuple(ks) if ks else (next(iter(samples.values())),)


def check_k(ks: Sequence[int], samples: int) -> None:
    """Refuse a k that there are too few samples for.

    Raises:
        ValueError: the k, and how many samples there are.
    """
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(f"k={k} needs at least {k} samples, and there are {samples}; lower --k.")


def _check_alike(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    first, *others = found
    for other in others:
        if apart := sorted(set(found[first]) ^ set(found[other])):
            raise ValueError(
                f"{first} and {other} were not evaluated on the same sets ({', '.join(apart)}); evaluate what is "
                "missing, or name the models of the table."
            )
        for one in found[first]:
            left, right = found[first][one], found[other][one]
            what = {
                "asked the same problems": [row["id"] for row in left["rows"]] == [row["id"] for row in right["rows"]],
                "sampled alike": left["sampling"] == right["sampling"],
                "scored alike": left.get("scoring") == right.get("scoring"),
            }
            if unlike := [name for name, same in what.items() if not same]:
                raise ValueError(
                    f"{first} and {other} were not {unlike[0]} on {one}, so that their figures cannot be compared; "
                    "evaluate one again in the same way."
                )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; what stands in a cell is text."""
    lines = [map(markdown_text, head), ["---"] * len(head), *(map(markdown_text, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
