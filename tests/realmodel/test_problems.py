"""Problems of published columns, each once, in an order of their own, some of them held out."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.realmodel.options import RealModelError
from fgrpo_plugin.realmodel.problems import HELD_OUT, Problem, digest, read_problems, split


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


@pytest.mark.parametrize(
    "given, answer",
    [
        (14, "14"),
        (123456.78, "123456.78"),  # all its digits: rounded to six, the right response would be wrong
        (0.00001, "0.00001"),
        (1e16, "10000000000000000"),
        (-0.0, "0"),
        ("1,234,567.5", "1234567.5"),
        ("-$5.50", "-5.5"),
        ("- 3", "-3"),
        ("\N{MINUS SIGN}3", "-3"),
        ("A-3", "3"),
        ("$.50", "0.5"),
        ("12 pens.", "12"),
        ("It is 12.", "12"),
        ("12,", "12"),
        ("40%", "40"),
        ("9 - 2 = 7, so\n#### -1,200", "-1200"),
    ],
)
def test_an_answer_keeps_its_value_and_sign(tmp_path, given, answer):
    (found,) = read_problems([write(tmp_path / "a.jsonl", [{"input": "a", "target": given}])])
    assert found.answer == answer and is_right(f"It is {answer}.", found.answer)


@pytest.mark.parametrize(
    "given",
    [
        *("", "none", None, True, float("nan"), 10**400, "9" * 400, [1], {"value": 1}, "1/2", "3:30", "1 000"),
        *("1e-5", "3,5", "1,2,3", "1.2.3", "9-2", "3 of 4", "x^2", "3½", "5\\pi", "2√3", "2π"),
    ],
)
def test_an_answer_that_is_not_one_number_is_refused(tmp_path, given):
    rows = [{"input": "a", "target": 1}, {"input": "b", "target": given}]
    with pytest.raises(RealModelError, match=r"a\.jsonl: row 1 has no number as its answer, or not one alone .*leave"):
        read_problems([write(tmp_path / "a.jsonl", rows)])


def test_a_parquet_file_with_nested_columns_and_decimals_is_read(tmp_path):
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How many?"}]
    rows = [{"prompt": chat, "reward_model": {"style": "rule", "ground_truth": "7"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chats.parquet")
    pq.write_table(pa.Table.from_pylist([{"question": "2?", "answer": Decimal("2.50")}]), tmp_path / "decimals.parquet")
    assert {one.text: one.answer for one in read_problems([tmp_path])} == {"How many?": "7", "2?": "2.5"}


def test_a_problem_stands_once_and_not_at_all_where_its_answers_differ(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"input": "x", "target": 1}, {"input": "y", "target": 2}])
    two = write(tmp_path / "b.jsonl", [{"input": "x", "target": "1.0"}, {"input": "y", "target": 3}])
    said = []
    assert read_problems([one, two], said.append) == read_problems([two, one], said.append) == [Problem("x", "1")]
    assert said[0].startswith("left out: 1 x a problem that stands there with several answers (first: 2 (DATA=")
    assert "a.jsonl, row 1) and 3 (DATA=" in said[0] and len(said) == 2


def test_other_texts_answers_and_orders_have_another_digest():
    one, two = Problem("x", "1"), Problem("y", "2")
    sets = [[one], [one, two], [two, one], [Problem("x", "2")], [Problem("z", "1")]]
    assert len({digest(problems) for problems in sets}) == len(sets) and digest([one]) == digest([Problem("x", "1")])


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
    assert [[len(part) for part in split(forth[:count])] for count in (16, 50, 499, 500)] == [
        [8, 8],
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
        ([{"problem": "a", "number": 1}], r"a problem and its answer \(found: problem, number\); .*\(row 0\)"),
        ([{"input": "a", "target": 1}, {}], r"a problem and its answer \(found: none\); .*\(row 1\)"),
        ([{"input": ["a"], "target": 1}], "row 0 has no text"),
        ([{"prompt": [], "reward_model": {"ground_truth": "1"}}], "row 0 has no text"),
        ([{"prompt": ["a"], "reward_model": {"ground_truth": "1"}}], "row 0 has no text"),
        ([{"prompt": [{"role": "user"}], "reward_model": {"ground_truth": "1"}}], "row 0 has no text"),
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
