"""Sets of problems as verl reads and scores them, from small files in the published columns.

Columns: GSM8K and MATH-500 as on their dataset cards (openai/gsm8k, HuggingFaceH4/MATH-500); GAIR/LIMR (prompt, answer,
source) and knoveleng/open-rs (problem, solution, answer, level) as programs that read them use them.
"""

import functools
import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.data.math_sets import MATH_SETS
from fgrpo_plugin.data.math_sets import prepare as prepare_set
from fgrpo_plugin.host.settings.rewards import earns_full_reward

ROWS = {
    "gsm8k": [
        {"question": "Ann has 3 bags of 500. How many?", "answer": "3 * 500 = <<3*500=1500>>1500\n#### 1,500"},
        {"question": "Half of 9?", "answer": "9 / 2 = 4.5\n#### 4.5"},
    ],
    "svamp": [
        {
            "Body": "A jar holds 1,600 beans and 3 lids",
            "Question": "How many beans and lids?",
            "Answer": 1603.0,
            "ID": "c-1",
        },
        {"Body": "It weighs 2 kg.", "Question": "And half of it?", "Answer": 1.0},
        {"Body": "It weighs 5 kg.", "Question": "And half of it?", "Answer": 2.5},
    ],
    "mawps": [
        {"input": "Ann has 7 caps and gets 7 more. How many?", "target": 14.0},
        {"input": "0.5 + 0.75?", "target": 1.25},
    ],
    "limr": [{"prompt": "Half of one?", "answer": "\\frac{1}{2}", "source": "math"}],
    "open_rs": [{"problem": "Solve $x^2=49, x<0$.", "solution": "...", "answer": "$-7$", "level": "Easy"}],
    "math_500": [
        {
            "problem": "Polar form of $(0,3)$?",
            "solution": "...",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        }
    ],
}
RESPONSES = {  # of the first row: right, and wrong
    "gsm8k": ("It is 1500.\n#### 1,500", "It is 1500.\n#### 150"),
    "svamp": ("1600 + 3\n#### 1,603", "#### 1603.0"),
    "mawps": ("#### 14", "#### 15"),
    "limr": ("So \\boxed{\\frac{1}{2}}.", "So \\boxed{\\frac{1}{3}}."),
    "open_rs": ("So \\boxed{-7}.", "So \\boxed{7}."),
    "math_500": ("So \\boxed{(3, \\frac{\\pi}{2})}.", "So (3, \\frac{\\pi}{2})."),
}
QUESTIONS = {"svamp": "A jar holds 1,600 beans and 3 lids. How many beans and lids?"}
prepare = functools.partial(prepare_set, earns_full_reward=earns_full_reward)


def _write(file, rows) -> str:
    if file.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize("name", MATH_SETS)
@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_the_host_s_reward_tells_right_from_wrong(tmp_path, name, ending):
    from verl.utils.reward_score import default_compute_score

    source = _write(tmp_path / f"published{ending}", ROWS[name])
    (found,) = prepare(name, tmp_path, source=source)
    rows = pd.read_parquet(found.file)
    assert found.rows == len(rows) == len(ROWS[name]) and not found.left_out
    assert found.file == tmp_path / name / f"{MATH_SETS[name].splits[0]}.parquet"
    row = rows.iloc[0]
    right, wrong = RESPONSES[name]
    truth = row.reward_model["ground_truth"]
    assert default_compute_score(row.data_source, right, truth, row.extra_info) == 1.0
    assert default_compute_score(row.data_source, wrong, truth, row.extra_info) == 0.0
    assert row.extra_info["dataset"] == name and row.ability == "math"
    assert row.prompt[0]["content"].startswith(QUESTIONS.get(name) or ROWS[name][0][MATH_SETS[name].question[0]])


def test_whole_numbers_are_written_without_decimals(tmp_path):
    for name, expected in (("svamp", ["1603", "1", "2.5"]), ("mawps", ["14", "1.25"])):
        (found,) = prepare(name, tmp_path, source=_write(tmp_path / f"{name}.jsonl", ROWS[name]))
        truths = [row["ground_truth"] for row in pd.read_parquet(found.file).reward_model]
        assert truths == expected
    (found,) = prepare("limr", tmp_path, source=_write(tmp_path / "l.jsonl", [{"prompt": "?", "answer": "33.0"}]))
    assert pd.read_parquet(found.file).reward_model[0]["ground_truth"] == "33"


def test_a_set_is_read_in_each_of_the_columns_in_which_it_is_published(tmp_path):
    source = _write(tmp_path / "m.jsonl", [{"question": "7 + 7?", "chain": "...", "result": "14", "equation": "x"}])
    (found,) = prepare("mawps", tmp_path, source=source, split="validation")
    assert found.rows == 1 and found.file.name == "validation.parquet"
    both = _write(tmp_path / "both.jsonl", [{"question": "7 + 7?", "input": "8 + 8?", "result": "14"}])
    with pytest.raises(ValueError, match="the columns input and question could both be meant"):
        prepare("mawps", tmp_path, source=both)
    with pytest.raises(ValueError, match=r"column input or question of mawps is missing \(found: x, target\)"):
        prepare("mawps", tmp_path, source=_write(tmp_path / "x.jsonl", [{"x": "7 + 7?", "target": 14}]))


@pytest.mark.parametrize(
    ("name", "truth", "response"),
    [
        ("gsm8k", "1500", "#### 1,500\n"),
        ("gsm8k", "-1500", "#### -1,500\n"),
        ("gsm8k", "4.5", "#### 4.5\n"),
        ("limr", "\\frac{1}{2}", "$\\boxed{\\dfrac{1}{2}}$."),
        ("limr", "(1,2)", "$\\boxed{(1, 2)}$."),
    ],
)
def test_the_reward_is_asked_with_the_answer_written_otherwise(name, truth, response):
    """Else a rule that compares text would always agree with itself."""
    assert MATH_SETS[name].right_answer(truth).endswith(response)
    assert earns_full_reward(MATH_SETS[name].data_source, MATH_SETS[name].right_answer(truth), truth)


def test_the_host_s_data_set_reads_what_is_written(tmp_path, stock_config):
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from fgrpo_plugin.quickstart.model import build_tokenizer

    published = tmp_path / "published"
    published.mkdir()
    _write(published / "train.jsonl", ROWS["gsm8k"])
    _write(published / "test.jsonl", ROWS["gsm8k"][:1])
    train, test = prepare("gsm8k", tmp_path, source=str(published))
    assert (train.rows, test.rows) == (2, 1)
    config = stock_config(f"+data.cache_dir={tmp_path}", "data.filter_overlong_prompts_workers=1").data
    rows = RLHFDataset([str(train.file)], build_tokenizer(), config)
    assert len(rows) == 2 and rows[1]["reward_model"]["ground_truth"] == "4.5" and rows[1]["index"] == 1


def test_rows_that_could_earn_no_reward_are_left_out_and_counted(tmp_path):
    rows = [
        *ROWS["gsm8k"],
        {"question": "And?", "answer": "no final answer"},
        {"question": " ", "answer": "#### 1"},
        {"question": "What?", "answer": "#### seven"},
        {"question": "What?", "answer": "#### 1 1/2"},
    ]
    (found,) = prepare("gsm8k", tmp_path, source=_write(tmp_path / "rows.jsonl", rows), split="test")
    assert found.rows == 2 and found.file.name == "test.parquet"
    assert found.first_left_out == {"answer holds no final answer": 2, "question is no text": 3}
    assert found.left_out == {"answer holds no final answer": 3, "question is no text": 1}


def test_a_reward_that_does_not_recognise_the_answer_leaves_the_row_out(tmp_path):
    source = _write(tmp_path / "rows.jsonl", ROWS["gsm8k"])
    (found,) = prepare_set(
        "gsm8k", tmp_path, earns_full_reward=lambda source, response, truth: truth != "4.5", source=source, split="test"
    )
    assert found.rows == 1 and found.left_out == {"verl's reward does not recognise the right answer": 1}


@pytest.mark.parametrize(
    ("name", "answer", "truth"),
    [
        ("svamp", ".5", "0.5"),
        ("svamp", "$.50", "0.50"),
        ("svamp", "-1,500.0", "-1500"),
        ("svamp", "12%", "12"),
        ("svamp", 12, "12"),
        ("svamp", "1 1/2", ""),
        ("svamp", "12 000", ""),
        ("svamp", "1,5", ""),
        ("svamp", "3 or 4", ""),
        ("svamp", "3 hours 20 minutes", ""),
        ("svamp", True, ""),
        ("gsm8k", "so\n#### $1,234.", "1234"),
        ("gsm8k", "#### .5", "0.5"),
        ("gsm8k", "#### 1 1/2", ""),
        ("limr", float("nan"), ""),
        ("limr", 1e20, ""),
        ("limr", ["12"], ""),
        ("limr", "$\\frac{1}{2}$", "\\frac{1}{2}"),
    ],
)
def test_a_ground_truth_is_the_whole_answer_or_none(name, answer, truth):
    assert MATH_SETS[name].ground_truth(answer) == truth


def test_a_problem_of_which_a_part_is_missing_is_left_out(tmp_path):
    rows = [
        *ROWS["svamp"],
        {"Body": None, "Question": "And?", "Answer": 1.0},
        {"Body": "It is.", "Question": None, "Answer": 1.0},
    ]
    (found,) = prepare("svamp", tmp_path, source=_write(tmp_path / "rows.jsonl", rows))
    assert found.rows == 3 and found.left_out == {"Body, Question is no text": 2}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["limo"], "limo is not known; choose among gsm8k, svamp, mawps, limr, open_rs, math_500"),
        (["limr", "--source", "{tmp}/missing.parquet"], "there is no such file or folder"),
        (["limr", "--source", "{tmp}/rows.txt"], "the ending '.txt' is none of .parquet"),
        (
            ["open_rs", "--source", "{tmp}/gsm8k.jsonl"],
            "column problem of open_rs is missing (found: question, answer)",
        ),
        (["limr", "--source", "{tmp}/gsm8k.jsonl", "--split", "test"], "--split=test: limr has train."),
        (["limr", "open_rs", "--source", "{tmp}/gsm8k.jsonl"], "is of one set; name one"),
        (["gsm8k", "--source", "{tmp}/bad.jsonl"], "no row of train can be used (answer holds no final answer: 1)"),
        (["gsm8k", "--source", "{tmp}/empty.jsonl"], "empty.jsonl: no row of train can be used (it is empty)."),
        (["gsm8k", "--source", "{tmp}/broken.jsonl"], "broken.jsonl: train cannot be read (row 1 is no JSON"),
        (
            ["gsm8k", "--source", "{tmp}/saved", "--split", "test"],
            "saved: test cannot be read (it has the splits train, not 'test'; set --split).",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, arguments, words):
    import datasets

    for file, text in (
        ("rows.txt", "x"),
        ("empty.jsonl", ""),
        ("broken.jsonl", '{"question": "?", "answer": "#### 1"}\n{broken\n'),
    ):
        (tmp_path / file).write_text(text)
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS["gsm8k"])).save_to_disk(tmp_path / "saved")
    _write(tmp_path / "gsm8k.jsonl", ROWS["gsm8k"])
    _write(tmp_path / "bad.jsonl", [{"question": "?", "answer": "none"}])
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    result = CliRunner().invoke(app, ["data", *filled, "--output", str(tmp_path / "out")])
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]  # before it, progress bars
    assert last.startswith("fgrpo data: ") and words in last
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(tmp_path):
    source = _write(tmp_path / "rows.jsonl", [*ROWS["limr"], {"prompt": "?", "answer": None, "source": ""}])
    result = CliRunner().invoke(app, ["data", "limr", "--source", source, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"1 rows to {tmp_path}/limr/train.parquet" in result.output
    assert "left out: 1 x answer holds no final answer (first: row 1)" in result.output
