"""The fixed prompts, the choice among them, and which training problems can teach anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo_plugin.eval.scoring import is_right, last_number
from fgrpo_plugin.realmodel.problems import Problem

_EXAMPLES = (
    ("Tom had 9 nuts and ate 2. How many nuts are left?", "Tom has 9 - 2 = 7 nuts."),
    ("There are 5 bags with 6 apples each. How many apples are there?", "There are 5 * 6 = 30 apples."),
    ("Ann has 3 pens and buys 4 more. How many pens does she have?", "Ann has 3 + 4 = 7 pens."),
    ("Sam shares 12 cards among 4 friends. How many does each get?", "Each friend gets 12 / 4 = 3 cards."),
)
_SENTENCE = "Answer with one short sentence."


def _turns(system: str, examples: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    said = [(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text} for role, text in [("system", system), *said]]


PROMPTS: dict[str, list[dict[str, str]]] = {
    "instruction": _turns("Answer with one short calculation and the result as a number.", ()),
    "two examples": _turns(_SENTENCE, _EXAMPLES[:2]),
    "four examples": _turns(_SENTENCE, _EXAMPLES),
}
"""What is said before a problem."""
CHOSEN = "four examples"
"""The best of them on training problems whose responses end by themselves; experiments/real_model has the figures."""


@dataclass(frozen=True)
class Shares:
    """Shares of a set's responses.

    Attributes:
        right: the last number is the answer.
        parsable: there is a number.
        cut: stopped by the limit of tokens.
        tokens: mean length.
    """

    right: float
    parsable: float
    cut: float
    tokens: float


def chat(problem: Problem, prompt: str) -> list[dict[str, str]]:
    """The messages that a problem becomes."""
    return [*PROMPTS[prompt], {"role": "user", "content": problem.text}]


def shares(problems: Mapping[str, Problem], responses: Mapping[str, Sequence[Mapping[str, Any]]]) -> Shares:
    """Score responses by the last number anywhere in them.

    Args:
        problems: id -> problem.
        responses: id -> responses, as `eval.sampling.responses` gives them.
    """
    every = [(problems[key], one) for key, given in responses.items() for one in given]
    count = len(every)
    return Shares(
        right=sum(is_right(one["text"], problem.answer) for problem, one in every) / count,
        parsable=sum(last_number(one["text"]) is not None for _, one in every) / count,
        cut=sum(not one["ended"] for _, one in every) / count,
        tokens=sum(one["tokens"] for _, one in every) / count,
    )


def mixed(problems: Mapping[str, Problem], responses: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The problems of which some responses are right and some are not: the others' advantages are 0."""
    found = []
    for key, given in responses.items():
        right = sum(is_right(one["text"], problems[key].answer) for one in given)
        if 0 < right < len(given):
            found.append(key)
    return found


def verl_rows(problems: Mapping[str, Problem], keys: Sequence[str], prompt: str) -> list[dict[str, Any]]:
    """Problems in verl's data format."""
    return [
        {
            "data_source": "word_problems",
            "prompt": chat(problems[key], prompt),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problems[key].answer},
            "extra_info": {"index": key},
        }
        for key in keys
    ]
