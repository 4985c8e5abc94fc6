"""Which files `make check` runs."""

import json
import re

from tests.quick import DURATIONS, ROOT, chosen
from tests.quick import test_files as files_of_tests


def test_the_cheapest_files_are_taken_and_new_ones_always():
    seconds = {"a": 5.0, "b": 1.0, "c": 3.0, "d": 100.0}
    assert chosen(["a", "b", "c", "d", "new"], seconds, budget=4.0) == (["new", "b", "c"], ["a", "d"])
    assert chosen(["a", "d"], seconds, budget=1000.0) == (["a", "d"], [])
    assert chosen(["b", "tests/test_theory.py"], seconds | {"tests/test_theory.py": 3.5}, budget=4.0) == (
        ["tests/test_theory.py"],
        ["b"],
    )


def test_what_is_recorded_is_there():
    files = files_of_tests()
    assert set(json.loads(DURATIONS.read_text())) <= set(files), "run `python tests/quick.py record`"
    assert not any("e2e" in file for file in files) and "tests/test_quick.py" in files


def test_every_long_test_belongs_to_a_part_of_make_test_long():
    words = [
        line.split("-m long ")[1].split() for line in (ROOT / "Makefile").read_text().splitlines() if "-m long" in line
    ]
    folders = [word for line in words for word in line if word.startswith("tests/") and "--ignore" not in word]
    long = [file for file in ROOT.glob("tests/**/test_*.py") if re.search(r"mark\.long\b", file.read_text())]
    assert len(long) > 5
    for file in (str(file.relative_to(ROOT)) for file in long if file.name != "test_quick.py"):
        assert file.startswith(tuple(folders)), file
