"""The reward of the real model's run, named to verl by `reward.custom_reward_function`: right or not, and nothing else.

A bonus for the form of a response is hacked within a few steps: the form is learned and the arithmetic lost.
"""

from typing import Any

from fgrpo_plugin.eval.scoring import is_right, last_number


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> dict:
    """Give 1 where the last number in the response is the answer, else 0; whether there was one stands beside it."""
    right = float(is_right(solution_str, ground_truth))
    return {"score": right, "acc": right, "parsable": float(last_number(solution_str) is not None)}
