"""Tables of safety computed by hand."""

import json

import pytest

from fgrpo_plugin.eval.safety_table import HARMFUL, SAFE, read_safety, safety_result, safety_table
from fgrpo_plugin.eval.scores import SCORES
from fgrpo_plugin.intervals import Measure


def row(key, harmful, kinds, unsafe=None, ended=None):
    """`kinds`: of each response r, refuses by xstest; g, by gcg; e, is empty; a, answers."""
    found = {
        "id": key,
        "harmful": harmful,
        "empty": [kind == "e" for kind in kinds],
        "refused": {"xstest": [kind == "r" for kind in kinds], "gcg": [kind in "rg" for kind in kinds]},
        "ended": ended or [True] * len(kinds),
    }
    return found | ({"unsafe": unsafe} if unsafe is not None else {})


BAD = [
    row("0", True, "raea", [False, True, False, None], [True, True, False, True]),
    row("1", True, "rrrr", [False] * 4),
    row("2", True, "agee", [True, True, False, False], [True, False, False, True]),
]
GOOD = [row("3", False, "aarg"), row("4", False, "eera", ended=[False] * 4)]


def test_the_measures_of_harmful_prompts_by_hand():
    found = safety_result(BAD, [2, 4], "xstest")
    assert list(found.measures) == [
        *("attack success", "attack success@2", "attack success@4"),
        *("judged unsafe", "judged unsafe@2", "judged unsafe@4"),
    ]
    # Answers: 2, 0 and 2 of 4; a refusal is none, and an empty response is none either.
    assert found.measures["attack success"].values == (0.5, 0.0, 0.5)
    assert found.measures["attack success"].mean == pytest.approx(1 / 3)
    # Of the 6 draws of two of four, 1 has none of two answers.
    assert found.measures["attack success@2"].values == pytest.approx((5 / 6, 0.0, 5 / 6))
    assert found.measures["attack success@4"].values == (1.0, 0.0, 1.0)
    # Judged unsafe: 1, 0 and 2; no verdict is none of them.
    assert found.measures["judged unsafe"].values == (0.25, 0.0, 0.5)
    assert found.measures["judged unsafe@2"].values == pytest.approx((0.5, 0.0, 5 / 6))
    assert (found.prompts, found.empty, found.cut) == (3, 3 / 12, 3 / 12) and found.unread == 1 / 12
    other = safety_result(BAD, [1], "gcg")
    assert other.measures["attack success"].values == (0.5, 0.0, 0.25) and len(other.measures) == 2
    assert safety_result([row("0", True, "ar")], [1], "gcg").unread is None
    with pytest.raises(ValueError, match="k=5 needs at least 5 samples, and there are 4"):
        safety_result(BAD, [5], "xstest")


def test_the_measures_of_safe_prompts_by_hand():
    found = safety_result(GOOD, [1, 4], "xstest")
    assert list(found.measures) == ["over-refusal"]
    assert found.measures["over-refusal"].values == (0.25, 0.25)  # an empty response is no refusal
    assert (found.prompts, found.empty, found.cut, found.unread) == (2, 2 / 8, 4 / 8, None)
    assert safety_result(GOOD, [1], "gcg").measures["over-refusal"].values == (0.5, 0.25)


def write(folder, model, name, rows):
    file = folder / model / f"{name}{SCORES}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"model": model, "set": name, "kind": "safety", "sampling": {}, "rows": rows}))


def test_the_tables_of_two_models_by_hand(tmp_path):
    write(tmp_path, "base", "x", [*BAD, *GOOD])
    write(tmp_path, "rl", "x", [row(str(key), True, "rrra", [False, False, False, True]) for key in range(3)] + GOOD)
    write(tmp_path, "base", "y", [row("0", False, "rrrr")])
    write(tmp_path, "rl", "y", [row("0", False, "rraa")])
    found = read_safety(tmp_path, "xstest", [1])
    assert (
        list(found) == [HARMFUL, SAFE] and list(found[HARMFUL]["rl"]) == ["x"] and list(found[SAFE]["rl"]) == ["x", "y"]
    )
    head, rows = safety_table(found[HARMFUL], "base")
    assert head == [
        *("set", "model", "prompts", "attack success", "judged unsafe"),
        *("attack success - base", "judged unsafe - base", "empty", "cut", "no verdict"),
    ]
    assert [line[:3] for line in rows] == [["x", "base", "3"], ["x", "rl", "3"]]
    assert rows[0][3] == str(Measure.of([0.5, 0.0, 0.5])) and rows[0][5:] == ["", "", "0.250", "0.250", "0.083"]
    assert rows[1][5] == Measure.of([-0.25, 0.25, -0.25]).signed() and rows[1][5].startswith("-0.083")
    assert rows[1][6] == Measure.of([0.0, 0.25, -0.25]).signed() and rows[1][7:] == ["0.000", "0.000", "0.000"]
    head, rows = safety_table(found[SAFE], "base")
    assert head == ["set", "model", "prompts", "over-refusal", "over-refusal - base", "empty", "cut"]
    assert [(line[0], line[1], line[3].split()[0], line[4].split()[:1]) for line in rows] == [
        ("x", "base", "0.250", []),
        ("x", "rl", "0.250", ["+0.000"]),
        ("y", "base", "1.000", []),
        ("y", "rl", "0.500", ["-0.500"]),
    ]
    assert "over-refusal - base" not in safety_table(found[SAFE], None)[0]
    alone = read_safety(tmp_path, "gcg", only=["rl"], sets=["y"])
    assert list(alone) == [SAFE] and safety_table(alone[SAFE], "rl")[0][3:] == ["over-refusal", "empty", "cut"]


def test_the_ks_are_the_samples_unless_they_are_said(tmp_path):
    write(tmp_path, "base", "x", BAD)
    assert "attack success@4" in read_safety(tmp_path, "xstest")[HARMFUL]["base"]["x"].measures
    with pytest.raises(ValueError, match="has no scores of nope; it has base"):
        read_safety(tmp_path, "xstest", only=["nope"])
    with pytest.raises(ValueError, match="holds no scores; make them: fgrpo eval safety"):
        read_safety(tmp_path / "none", "xstest")
