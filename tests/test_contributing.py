"""The worked examples of CONTRIBUTING.md do what it says of them."""

import re
from pathlib import Path

import pytest

from fgrpo_plugin.preference import readers
from fgrpo_plugin.preference.readers import BadRow

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def example(heading: str) -> str:
    """The Python below a heading."""
    part = TEXT[TEXT.index(f"## {heading}") :]
    found = re.search(r"```python\n(.*?)```", part, flags=re.DOTALL)[1]
    assert len(found.splitlines()) < 30
    return found


def test_a_refusal_is_a_row_of_three():
    names = {"select": lambda key: key.endswith("use_prefix_grouper"), "name": "f_grpo"}
    exec(example("Add a refusal"), names)
    wrong, setting, reason = names["row"]
    assert wrong is True and setting.endswith("=true") and reason.startswith("f_grpo has not been tried")


def test_a_format_reads_its_rows_and_refuses_others():
    names = dict(vars(readers))
    exec(example("Add a format"), names)
    row = {"prompt": "2+2?", "best": "4", "worst": "5"}
    notes = names.get("Notes", dict)()
    read = names["_ranked_pair"](("prompt", "best", "worst"), row, notes)
    assert [(text, desirable) for text, desirable in read[1]] == [("4", True), ("5", False)]
    for wrong in (None, 3, [1]):
        with pytest.raises(BadRow):
            names["_ranked_pair"](("prompt", "best", "worst"), row | {"worst": wrong}, notes)
