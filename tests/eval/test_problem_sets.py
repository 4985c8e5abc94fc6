"""Published columns, verl's rows, and what is refused: small files of our own in the same shapes."""

import json
import re

import pytest

from fgrpo_plugin.eval.problem_sets import INSTRUCTION, question_and_answer, read_sets


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row, asked, answer",
    [
        ({"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"}, "2+2?", "4"),
        ({"question": "2+2?", "answer": "about\n#### 1,234"}, "2+2?", "1,234"),
        ({"problem": "2+2?", "answer": r"\frac{8}{2}"}, "2+2?", r"\frac{8}{2}"),
        ({"problem": "2+2?", "solution": r"So \boxed{4}.", "level": "1"}, "2+2?", r"So \boxed{4}."),
        ({"Body": "Two and two", "Question": "Sum?", "Answer": 4.0}, "Two and two. Sum?", "4.0"),
        ({"Body": "Two, two.", "Question": "Sum?", "Answer": 4}, "Two, two. Sum?", "4"),
        ({"Body": None, "Question": "Sum?", "Answer": 4}, "Sum?", "4"),
        ({"input": "2+2?", "target": 4}, "2+2?", "4"),
        ({"input": "2+2?", "target": 2.5e16}, "2+2?", "25000000000000000"),
        ({"input": "2+2?", "target": 1.5e-05}, "2+2?", "0.000015"),
        ({"input": "2+2?", "target": -0.1}, "2+2?", "-0.1"),
        ({"question": "2+2?", "answer": r"\$32,\!348"}, "2+2?", r"\$32,\!348"),
    ],
)
def test_published_columns(tmp_path, row, asked, answer):
    (found,) = read_sets([write(tmp_path / "a.set.jsonl", [row])])
    assert found.name == "a.set"
    (problem,) = found.asked.values()
    assert problem.chat == ({"role": "user", "content": f"{asked}\n{INSTRUCTION}"},) and problem.answer == answer
    (plain,) = read_sets([tmp_path / "a.set.jsonl"], instruction="")
    assert next(iter(plain.asked.values())).chat == ({"role": "user", "content": asked},)


def test_verls_rows_are_asked_as_they_are(tmp_path):
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "2+2?"}]
    row = {"prompt": chat, "reward_model": {"style": "rule", "ground_truth": "4"}, "data_source": "x"}
    (found,) = read_sets([write(tmp_path / "verl.jsonl", [row])])
    (problem,) = found.asked.values()
    assert list(problem.chat) == chat and problem.answer == "4"


def test_verls_parquet_too(tmp_path):
    import datasets

    chat = [{"role": "user", "content": "2+2?"}]
    rows = [{"prompt": chat, "reward_model": {"style": "rule", "ground_truth": "4"}}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "test.parquet"))
    (found,) = read_sets([tmp_path / "test.parquet"])
    assert [problem.answer for problem in found.asked.values()] == ["4"]


def test_a_limit_takes_the_same_problems_whatever_their_order(tmp_path):
    rows = [{"input": f"{number}?", "target": number} for number in range(40)]
    (first,) = read_sets([write(tmp_path / "one" / "a.jsonl", rows)], limit=10)
    (other,) = read_sets([write(tmp_path / "two" / "a.jsonl", rows[::-1])], limit=10)
    (more,) = read_sets([tmp_path / "one" / "a.jsonl"], limit=20)

    def asked(found):
        return {problem.chat[0]["content"] for problem in found.asked.values()}

    assert len(first.asked) == 10 and asked(first) == asked(other) < asked(more)
    assert asked(first) != {f"{number}?\n{INSTRUCTION}" for number in range(10)}  # not the first ones
    (everything,) = read_sets([tmp_path / "one" / "a.jsonl"], limit=100)
    assert [problem.answer for problem in everything.asked.values()] == [str(number) for number in range(40)]


def test_a_problem_that_is_there_twice_counts_twice_and_another_answer_is_another_problem(tmp_path):
    rows = [{"input": "1?", "target": 1}, {"input": "1?", "target": 1}]
    (found,) = read_sets([write(tmp_path / "a.jsonl", rows)])
    (changed,) = read_sets([write(tmp_path / "a.jsonl", [rows[0], {"input": "1?", "target": 2}])])
    assert len(found.asked) == 2 and next(iter(found.asked)) == next(iter(changed.asked))
    assert list(found.asked)[1] != list(changed.asked)[1]


@pytest.mark.parametrize(
    "rows, why",
    [
        ([{"text": "x", "label": 1}], r"no columns of a problem and its answer \(found: text, label\); rename them"),
        ([{"input": "1?", "target": 1}, {"input": "", "target": 1}], "row 1 asks nothing"),
        ([{"input": "1?", "target": None}], r"row 0 has no answer that can be compared \(''\)"),
        ([{"input": "1?", "target": " "}], r"row 0 has no answer that can be compared \(''\)"),
        ([{"input": "1?", "target": True}], "row 0 has no answer that can be compared"),
        ([{"input": "1?", "target": float("nan")}], "row 0 has no answer that can be compared"),
        ([{"input": "1?", "target": float("-inf")}], "row 0 has no answer that can be compared"),
        ([{"prompt": [], "reward_model": {"ground_truth": "1"}}], "row 0 asks nothing"),
        ([{"prompt": [{"role": "user", "content": "1?"}], "reward_model": {}}], "row 0 has no answer"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_by_number(tmp_path, rows, why):
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=f"^--data {file}: {why}") as error:
        read_sets([file])
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"input": "1?", "target": 1}\n{"input"\n')
    (tmp_path / "words.txt").write_text("words")
    write(tmp_path / "a.jsonl", [{"input": "1?", "target": 1}])
    write(tmp_path / "other" / "a.json", [{"input": "1?", "target": 1}])
    for names, why in (
        (["missing.jsonl"], "there is no such file or folder"),
        (["empty"], "the folder holds no file of .parquet"),
        (["none.jsonl"], "it holds no problems|no rows|empty"),
        (["broken.jsonl"], "row 1|line 2"),
        (["words.txt"], "the ending '.txt' is none of"),
        (["a.jsonl", "other/a.json"], "two sets are called a"),
    ):
        with pytest.raises(ValueError, match=why) as error:
            read_sets([tmp_path / name for name in names])
        assert "\n" not in str(error.value) and re.match("--data|two sets", str(error.value))


def test_the_columns_of_a_row_alone():
    assert question_and_answer({"question": "q", "answer": "a", "input": "i", "target": "t"}) == ("i", "t")
    with pytest.raises(ValueError, match="Body, Question and Answer; input and target"):
        question_and_answer({"question": "q"})
