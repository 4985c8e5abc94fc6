"""The sums, what is counted of responses, and preferences that differ in the number alone."""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.real_hybrid.reward import only_a_number
from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.realmodel.problems import Problem

QUESTION = "What is {a} + {b}? Answer with the number only."
LARGEST, SEED = 50, 0
_LAST_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?!.*\d)", flags=re.DOTALL)

Responses = Mapping[str, Sequence[Mapping[str, Any]]]
"""Problem's id -> its responses, as `eval.sampling.responses` gives them."""


def problems(count: int) -> list[Problem]:
    """The first sums of a fixed order of all with terms of 1 to 50, none twice."""
    every = list(itertools.product(range(1, LARGEST + 1), repeat=2))
    return [Problem(QUESTION.format(a=a, b=b), str(a + b)) for a, b in random.Random(SEED).sample(every, count)]


def chat(problem: Problem) -> list[dict[str, str]]:
    """The messages that a problem becomes."""
    return [{"role": "user", "content": problem.text}]


def counted(problems: Mapping[str, Problem], responses: Responses) -> dict[str, Any]:
    """Shares of right responses, of those that are only a number, and of those that the limit has cut; mean length.

    Args:
        problems: id -> problem.
        responses: of these problems.
    """
    every = [(problems[key], one) for key, given in responses.items() for one in given]

    def share(flags: list[bool]) -> float:
        return sum(flags) / len(flags)

    return {
        "right": share([bool(is_right(one["text"], problem.answer)) for problem, one in every]),
        "bare": share([only_a_number(one["text"]) for _, one in every]),
        "cut": share([not one["ended"] for _, one in every]),
        "tokens": sum(one["tokens"] for _, one in every) / len(every),
    }


def preferences(problems: Mapping[str, Problem], sampled: Responses) -> list[dict[str, Any]]:
    """One pair a problem: the model's own wrong response, and the same words with the answer for their last number.

    Both have one form, so that the form makes no difference between them.

    Args:
        problems: id -> problem; none of those that are trained on or held out.
        sampled: the model's responses before training; a problem without a wrong one that has a number makes no pair,
            nor does a response that is not right with the answer in place of its last number.
    """
    pairs = []
    for key, problem in problems.items():
        for one in sampled[key]:
            text = one["text"]
            if one["ended"] and not is_right(text, problem.answer) and _LAST_NUMBER.search(text):
                chosen = _LAST_NUMBER.sub(problem.answer, text)
                if not is_right(chosen, problem.answer):  # a minus sign, a point or an exponent stands by the number
                    continue
                pairs.append({"prompt": chat(problem), "chosen": chosen, "rejected": text})
                break
    return pairs
