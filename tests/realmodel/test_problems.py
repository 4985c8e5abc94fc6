"""Problems of published columns, each once, in an order of their own, some of them held out."""

import json

import pytest

from fgrpo_plugin.realmodel.options import RealModelError
from fgrpo_plugin.realmodel.problems import HELD_OUT, Problem, read_problems, split


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"input": " A sum? ", "target": 14.0}, Problem("A sum?", "14")),
        ({"Body": "He has 3", "Question": "How many?", "Answer": 3.5}, Problem("He has 3. How many?", "3.5")),
        ({"Body": "He has 3 pens?", "Question": "How many?", "Answer": 3}, Problem("He has 3 pens? How many?", "3")),
        ({"question": "How many?", "answer": "So.\n#### 1,234"}, Problem("How many?", "1234")),
        (
            {"prompt": [{"role": "user", "content": "How many?"}], "reward_model": {"ground_truth": "7"}},
            Problem("How many?", "7"),
        ),
    ],
)
def test_published_columns(tmp_path, row, problem):
    assert read_problems([write(tmp_path / "a.jsonl", [row])]) == [problem]


def test_a_folder_gives_its_one_step_problems_where_it_has_them_and_else_every_file(tmp_path):
    write(tmp_path / "svamp.jsonl", [{"input": "svamp", "target": 1}])
    assert [problem.text for problem in read_problems([tmp_path])] == ["svamp"]
    write(tmp_path / "mawps_singleop.jsonl", [{"input": "one", "target": 1}])
    write(tmp_path / "mawps_addsub.jsonl", [{"input": "two", "target": 2}])
    assert [problem.text for problem in read_problems([tmp_path])] == ["one"]
    both = read_problems([tmp_path / "mawps_singleop.jsonl", tmp_path / "mawps_addsub.jsonl"])
    assert {problem.text: problem.answer for problem in both} == {"one": "1", "two": "2"}


def test_the_order_and_so_the_split_does_not_depend_on_the_files(tmp_path):
    rows = [{"input": f"problem {number}", "target": number} for number in range(1000)]
    forth = read_problems([write(tmp_path / "a.jsonl", rows)])
    back = read_problems([write(tmp_path / "b.jsonl", rows[500:]), write(tmp_path / "c.jsonl", rows[:500])])
    assert forth == back
    training, held_out = split(forth)
    assert len(held_out) == HELD_OUT == 400 and len(training) == 600
    assert not {p.text for p in training} & {p.text for p in held_out}
    assert [[len(part) for part in split(forth[:count])] for count in (50, 499, 500)] == [
        [25, 25],
        [250, 249],
        [100, 400],
    ]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"input": "a", "target": "none"}], "row 0 has no number as its answer"),
        ([{"input": "a", "target": 1}, {"input": " ", "target": 1}], "row 1 has no text"),
        ([{"input": "a", "target": None}], "row 0 has no number"),
        ([{"problem": "a", "number": 1}], r"no columns of a problem and its answer \(found: problem, number\)"),
    ],
)
def test_what_cannot_be_used_is_refused_by_row_and_file(tmp_path, rows, words):
    with pytest.raises(RealModelError, match=words) as refused:
        read_problems([write(tmp_path / "a.jsonl", rows)])
    assert "a.jsonl" in str(refused.value)


def test_few_problems_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(RealModelError, match="15 problems are too few"):
        split([Problem(str(number), "1") for number in range(15)])
    with pytest.raises(RealModelError, match=r"holds no \.jsonl"):
        read_problems([tmp_path])
