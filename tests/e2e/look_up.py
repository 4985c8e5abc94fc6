"""A tool in a file of its own, as `actor_rollout_ref.rollout.multi_turn.function_tool_path` wants it."""

from verl.tools.function_tool import function_tool


@function_tool
def look_up(key: str) -> str:
    """Look a key up.

    Args:
        key: any text.
    """
    return "42"
