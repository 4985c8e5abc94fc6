"""The prompts, what is counted of responses, and preferences that differ in the number alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.real_hybrid.reward import only_a_number
from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.realmodel.problems import Problem
from fgrpo_plugin.realmodel.prompts import CHOSEN, PROMPTS

WORKED, BARE = "worked", "bare"
"""The two ways in which a problem is asked: after examples with their calculation, and after bare numbers.

Held-out problems are asked in the first way, in which this model calculates and hardly a response is cut; in the
second it now and then gives only a number, so that the flaw of the reward can be found.
"""
_PREFIXES = {
    WORKED: PROMPTS[CHOSEN],
    BARE: [
        {"role": "system", "content": "Answer with only the number."},
        {"role": "user", "content": "Tom had 9 nuts and ate 2. How many nuts are left?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "There are 5 bags with 6 apples each. How many apples are there?"},
        {"role": "assistant", "content": "30"},
        {"role": "user", "content": "Ann has 3 pens and buys 4 more. How many pens does she have?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Sam shares 12 cards among 4 friends. How many does each get?"},
        {"role": "assistant", "content": "3"},
    ],
}
_LAST_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?!.*\d)", flags=re.DOTALL)

Responses = Mapping[str, Sequence[Mapping[str, Any]]]
"""Problem's id -> its responses, as `eval.sampling.responses` gives them."""


def asked(key: str) -> str:
    """The way in which a training problem is asked: every other one in each."""
    return (WORKED, BARE)[int(key) % 2]


def chat(problem: Problem, way: str) -> list[dict[str, str]]:
    """The messages that a problem becomes."""
    return [*_PREFIXES[way], {"role": "user", "content": problem.text}]


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
                pairs.append({"prompt": chat(problem, asked(key)), "chosen": chosen, "rejected": text})
                break
    return pairs
