"""Tables computed by hand, and evaluations that cannot be compared."""

import json

import pytest

from fgrpo_plugin.eval.scores import SCORES
from fgrpo_plugin.eval.table import overall_table, read_evaluation, set_result, set_table
from fgrpo_plugin.intervals import Measure, bootstrap


def row(key, votes, right, ended=None, tokens=None, slow=()):
    return {
        "slow": list(slow),
        "id": key,
        "vote": votes,
        "right": [vote in right for vote in votes],
        "ended": ended or [True] * len(votes),
        "tokens": tokens or [10] * len(votes),
    }


def write(folder, model, name, rows, sampling=None):
    file = folder / model / f"{name}{SCORES}"
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = {"model": model, "set": name, "sampling": sampling or {"temperature": 1.0}, "rows": rows}
    file.write_text(json.dumps(scores))
    return file


ROWS = [
    row("0", [0, 0, 2, 3], {0}, [True, True, False, True], [4, 8, 96, 4]),
    row("1", [0, 1, 1, None], {0}, [True, True, True, False], [4, 4, 4, 96]),
    row("2", [None, 1, 2, 3], set()),
]


def test_the_measures_of_a_set_by_hand():
    found = set_result(ROWS, [2, 4])
    assert list(found.measures) == ["pass@1", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert found.measures["pass@1"].values == (0.5, 0.25, 0.0)
    assert found.measures["pass@2"].values == pytest.approx((1 - 1 / 6, 0.5, 0.0))
    assert found.measures["pass@4"].values == (1.0, 1.0, 0.0)
    assert found.measures["maj@4"].values == (1.0, 0.0, 0.0)
    # Blocks of two: right, then a tie of two wrong; a tie with a right one, then wrong; nothing.
    assert found.measures["maj@2"].values == (0.5, 0.25, 0.0)
    assert found.measures["pass@4"].mean == pytest.approx(2 / 3)
    assert (found.measures["pass@4"].low, found.measures["pass@4"].high) == bootstrap([1.0, 1.0, 0.0])
    assert (found.problems, found.answered, found.cut) == (3, pytest.approx(10 / 12), pytest.approx(2 / 12))
    assert found.tokens == pytest.approx((4 + 8 + 96 + 4 + 4 + 4 + 4 + 96 + 40) / 12)
    assert set_result([row("0", [0], {0}, tokens=[None])], [1]).tokens is None
    assert (
        found.slow == 0
        and set_result([row("0", [0, 1], {0}, slow=[0, 1]), row("1", [0, 1], {0}, slow=[1])], [1]).slow == 3
    )
    assert list(set_result(ROWS, [1]).measures) == ["pass@1"]


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_beyond_the_samples_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} needs at least {k} samples, and there are 4; lower --k"):
        set_result(ROWS, [k])


def two_models(folder):
    for model, right in (("base", ({0}, set())), ("rl", ({0}, {0}))):
        write(folder, model, "a", [row("0", [0, 1], right[0]), row("1", [0, 1], right[1])])
        write(folder, model, "b", [row("0", [0, 1], {0}), row("1", [0, 0], right[1])])
    return folder


def test_the_table_of_two_models_by_hand(tmp_path):
    evaluation = read_evaluation(two_models(tmp_path))
    head, rows = set_table(evaluation, "base")
    assert head == [
        *("set", "model", "problems", "pass@1", "pass@2", "maj@2", "pass@1 - base"),
        *("with an answer", "cut", "tokens"),
    ]
    assert [line[:2] for line in rows] == [["a", "base"], ["a", "rl"], ["b", "base"], ["b", "rl"]]
    assert [line[3].split()[0] for line in rows] == ["0.250", "0.500", "0.250", "0.750"]
    assert [line[6].split()[0] if line[6] else "" for line in rows] == ["", "+0.250", "", "+0.500"]
    assert rows[1][6] == Measure.of([0.0, 0.5]).signed() and rows[1][7:] == ["1.000", "0.000", "10"]
    assert overall_table(evaluation, "base") == (
        ["model", "mean pass@1", "mean rank", "Relative Overall (base base)"],
        [["base", "0.250", "2.00", "0.0"], ["rl", "0.625", "1.00", "100.0"]],
    )
    assert [line[-1] for line in overall_table(evaluation, None)[1]] == ["-", "-"]
    assert "pass@1 - base" not in set_table(evaluation, None)[0]


def test_models_are_chosen_and_ordered_by_name(tmp_path):
    two_models(tmp_path)
    assert list(read_evaluation(tmp_path, only=["rl", "base"]).results) == ["rl", "base"]
    assert list(read_evaluation(tmp_path, only=["rl"]).results) == ["rl"]
    with pytest.raises(ValueError, match=r"has no scores of nope; it has base, rl"):
        read_evaluation(tmp_path, only=["nope"])


def test_sets_are_chosen_and_need_a_k_where_their_samples_differ(tmp_path):
    two_models(tmp_path)
    for model in ("base", "rl"):
        write(tmp_path, model, "c", [row("0", [0, 1, 2], {0})])
    with pytest.raises(ValueError, match=r"other numbers of samples \(a 2, b 2, c 3\); say which k to show: --k"):
        read_evaluation(tmp_path)
    assert list(read_evaluation(tmp_path, [1]).results["rl"]) == ["a", "b", "c"]
    only = read_evaluation(tmp_path, sets=["c"])
    assert list(only.results["rl"]) == ["c"] and only.ks == (3,)
    write(tmp_path, "rl", "d", [row("0", [0, 1], {0})])  # of another call, for one model alone
    assert list(read_evaluation(tmp_path, sets=["a", "b"]).results["base"]) == ["a", "b"]
