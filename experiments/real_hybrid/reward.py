"""A reward with a flaw, named to verl by `reward.custom_reward_function`: a bonus for the form of a response."""

import re
from typing import Any

from fgrpo_plugin.eval.scoring import is_right

RIGHT, BARE = 0.7, 0.3
"""What a right response earns, and what one earns that is only a number, right or not."""
_BARE = re.compile(r"\s*-?\$?(?:\d[\d,]*)?\.?\d+\.?\s*")


def only_a_number(text: str) -> bool:
    """Whether a response is a number and nothing else."""
    return _BARE.fullmatch(text) is not None


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """Give 0.7 where the last number in the response is the answer, and 0.3 where the response is only a number."""
    return RIGHT * is_right(solution_str, ground_truth) + BARE * only_a_number(solution_str)
