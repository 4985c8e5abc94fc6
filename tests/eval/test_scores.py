"""Files of scores: kinds apart, and evaluations that cannot be compared."""

import json

import pytest

from fgrpo_plugin.eval.scores import MATH, SAFETY, SCORES, check_k, chosen_ks, comparable, markdown, read_scores


def write(folder, model, name, ids="01", samples=2, **more):
    file = folder / model / f"{name}{SCORES}"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": key, "ended": [True] * samples} for key in ids]
    file.write_text(json.dumps({"model": model, "set": name, "sampling": {"temperature": 1.0}, "rows": rows} | more))
    return file


def two_models(folder):
    for model in ("base", "rl"):
        for name in ("a", "b"):
            write(folder, model, name)
    return folder


def test_kinds_are_told_apart_and_scores_without_one_are_of_mathematics(tmp_path):
    two_models(tmp_path)
    write(tmp_path, "rl", "c", kind="safety")
    found = read_scores(tmp_path)
    assert {kind: {model: [*own] for model, own in models.items()} for kind, models in found.items()} == {
        MATH: {"base": ["a", "b"], "rl": ["a", "b"]},
        SAFETY: {"rl": ["c"]},
    }
    assert list(comparable(tmp_path, SAFETY)) == ["rl"] and list(comparable(tmp_path, MATH)) == ["base", "rl"]
    assert list(read_scores(tmp_path, ["c"])) == [SAFETY]


def test_models_and_sets_are_chosen(tmp_path):
    two_models(tmp_path)
    assert list(comparable(tmp_path, MATH, ["rl", "base"])) == ["rl", "base"]
    assert list(comparable(tmp_path, MATH, ["rl"], ["b"])["rl"]) == ["b"]
    with pytest.raises(ValueError, match=r"has no scores of nope; it has base, rl"):
        comparable(tmp_path, MATH, ["nope"])


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no scores; make them: fgrpo eval safety"):
        comparable(tmp_path / "empty", SAFETY)
    two_models(tmp_path)
    write(tmp_path, "rl", "c")
    with pytest.raises(ValueError, match=r"base and rl were not evaluated on the same sets \(c\)"):
        comparable(tmp_path, MATH)
    (tmp_path / "rl" / f"c{SCORES}").unlink()
    for more, why in (
        ({"ids": "02"}, "asked the same problems"),
        ({"sampling": {"temperature": 0.5}}, "sampled alike"),
        ({"scoring": {"judge": "j"}}, "scored alike"),
    ):
        write(tmp_path, "rl", "a", **more)
        with pytest.raises(ValueError, match=f"base and rl were not {why} on a, so that their figures cannot"):
            comparable(tmp_path, MATH)
    write(tmp_path, "rl", "a").write_text("{")
    with pytest.raises(ValueError, match=r"a\.scores\.json cannot be read .*; evaluate it again"):
        read_scores(tmp_path)


def test_scores_that_were_copied_to_another_name_or_hold_nothing_are_refused(tmp_path):
    file = write(tmp_path, "base", "a")
    copy = tmp_path / "copy" / file.name
    copy.parent.mkdir()
    copy.write_text(file.read_text())
    with pytest.raises(ValueError, match=r"cannot be read .*it is of base on a, not of copy on a.*; evaluate it again"):
        read_scores(tmp_path)
    copy.unlink()
    for how in ({"ids": ""}, {"samples": 0}):
        write(tmp_path, "base", "b", **how)
        with pytest.raises(ValueError, match="it has no rows"):
            read_scores(tmp_path)
    write(tmp_path, "base", "b").write_text('{"model": "base", "set": "b"}')
    with pytest.raises(ValueError, match="KeyError: 'rows'"):
        read_scores(tmp_path)


def test_the_ks_are_the_samples_unless_they_are_said(tmp_path):
    found = comparable(two_models(tmp_path), MATH)
    assert chosen_ks(found, None) == chosen_ks(found, []) == (2,) and chosen_ks(found, [1, 2]) == (1, 2)
    write(tmp_path, "base", "b", samples=3)
    with pytest.raises(ValueError, match=r"other numbers of samples \(a 2, b 3\); say which k to show: --k"):
        chosen_ks(comparable(tmp_path, MATH), None)
    check_k([1, 2], 2)
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k={k} needs at least {k} samples, and there are 2; lower --k"):
            check_k([k], 2)


def test_markdown_has_a_line_a_row():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
