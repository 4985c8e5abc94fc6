"""The command that changes the code a little and asks whether a test notices."""

import ast
import multiprocessing.connection
from collections import Counter

import pytest

from tests.mutants import ROOT, TARGETS, Child, Target, all_mutants, draw
from tests.mutations import edits

SAMPLE = '''"""A docstring says 1 + 1."""
__all__ = ["f"]


def f(x: int | None = 0, *, level="token", ready=True) -> int:
    """Not 2."""
    if x is None and level == "token":
        raise ValueError(f"{level} is not {'x' + 'y'}")
    y = 2 * (x  # a comment with a *
             - 1)
    print("x", 1)
    y += x.sum(dim=-1).clamp(min=1)
    found = {"above": a["sequence"], "below": -y ** 2, "text": "a" + "b"}
    found.update(found)
    return max(y, 3) if not ready else [z for z in found if z < 4]
'''


@pytest.fixture(scope="module")
def changes():
    return {(edit.before, edit.after) for edit in edits(SAMPLE)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('if x is None and level == "token":', 'if x is not None and level == "token":'),
        ('if x is None and level == "token":', 'if x is None or level == "token":'),
        ('if x is None and level == "token":', 'if x is None and level != "token":'),
        ('if x is None and level == "token":', "if True:"),
        ("y = 2 * (x # a comment with a *", "y = 2 / (x # a comment with a *"),
        ("- 1)", "+ 1)"),
        ("- 1)", "- 2)"),
        ("y += x.sum(dim=-1).clamp(min=1)", "pass"),
        ("y += x.sum(dim=-1).clamp(min=1)", "y -= x.sum(dim=-1).clamp(min=1)"),
        ("y += x.sum(dim=-1).clamp(min=1)", "y += x.mean(dim=-1).clamp(min=1)"),
        ("y += x.sum(dim=-1).clamp(min=1)", "y += x.sum(dim=-1)"),
        ("found.update(found)", "pass"),
        *(
            ('found = {"above": a["sequence"], "below": -y ** 2, "text": "a" + "b"}', after)
            for after in (
                'found = {"below": a["sequence"], "below": -y ** 2, "text": "a" + "b"}',
                'found = {"above": a["sequence"], "below": y ** 2, "text": "a" + "b"}',
                'found = {"above": a["sequence"], "below": -y ** 1, "text": "a" + "b"}',
            )
        ),
        *(
            ("return max(y, 3) if not ready else [z for z in found if z < 4]", after)
            for after in (
                "return min(y, 3) if not ready else [z for z in found if z < 4]",
                "return max(y, 4) if not ready else [z for z in found if z < 4]",
                "return max(y, 3) if ready else [z for z in found if z < 4]",
                "return max(y, 3) if not ready else [z for z in found if z <= 4]",
                "return max(y, 3) if not ready else [z for z in found if True]",
            )
        ),
    ],
)
def test_an_operator_changes_its_own_place(changes, before, after):
    assert (before, after) in changes


def test_what_no_test_should_notice_is_left_alone(changes):
    changed = {before for before, _ in changes}
    for text in ("docstring", "__all__", "Not 2", "raise", "print"):
        assert not any(text in line for line in changed)
    assert not any("dim=1" in after or "| not" in after or '"a" - "b"' in after for _, after in changes)


@pytest.fixture(scope="module")
def mutants():
    return all_mutants()


def test_every_mutant_parses_and_differs(mutants):
    assert [mutant.number for mutant in mutants] == list(range(len(mutants)))
    assert {mutant.target for mutant in mutants} == set(TARGETS)
    for edit in edits(SAMPLE):
        changed = edit.apply(SAMPLE)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(SAMPLE))


def test_the_draw_is_even_and_the_same_again(mutants):
    drawn = draw(mutants, 200, 0)
    assert drawn == draw(mutants, 200, 0) != draw(mutants, 200, 1)
    assert len(drawn) == len(set(drawn)) == 200
    counts, all_counts = (Counter(mutant.target for mutant in some) for some in (drawn, mutants))
    assert all(abs(counts[target] - 200 * all_counts[target] / len(mutants)) <= 1 for target in TARGETS)
    assert draw(mutants, 0, 0) == mutants


def test_an_untested_line_survives_and_a_tested_one_is_killed(tmp_path):
    (tmp_path / "planted.py").write_text(
        source := "def tested(x):\n    return x + 1\n\n\ndef other(x):\n    return x + 2\n"
    )
    (tmp_path / "test_planted.py").write_text("import planted\n\ndef test():\n    assert planted.tested(1) == 2\n")
    target = Target("planted.py", ("test_planted.py",))

    def outcome(changed: str, limit: float = 60.0) -> str:
        child = Child(target, changed, limit, tmp_path)
        multiprocessing.connection.wait([child.answer], limit)
        return child.finish()["outcome"]

    by_line = {edit.line: outcome(edit.apply(source)) for edit in edits(source)}
    assert by_line == {2: "killed", 6: "survived"}
    assert outcome(source) == "survived"
    assert outcome(source + "while True: pass\n", 2.0) == "timeout"
    assert (tmp_path / "planted.py").read_text() == source


def test_every_target_and_its_tests_exist():
    for target in TARGETS:
        for name in (target.file, *target.tests):
            assert (ROOT / name).exists(), name
