"""The addition task: a fixed split, rows in verl's format, and a reward that gives 1.0 for the exact answer alone."""

import random
import subprocess
import sys

import pytest

from fgrpo_plugin.quickstart import task
from fgrpo_plugin.quickstart.task import Pair


def test_splits_are_disjoint_complete_and_of_the_stated_size():
    train, held_out = task.split_pairs()
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(task.OPERANDS) ** 2
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(1 / task.HELDOUT_ONE_IN, abs=0.02)


def test_a_held_out_pair_is_not_trained_on_in_the_other_order():
    train, held_out = task.split_pairs()
    assert not {Pair(b, a) for a, b in held_out} & set(train)


def test_the_split_does_not_depend_on_the_process():
    # Python's own hash of a string differs between processes; the split must not.
    code = "from fgrpo_plugin.quickstart.task import *; print(sum(a * 1000 + b for a, b in split_pairs()[1]))"
    env = {"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert int(printed) == sum(a * 1000 + b for a, b in task.split_pairs()[1])


def test_the_validation_rows_are_held_out_and_the_same_each_time():
    sample = task.heldout_sample()
    assert len(set(sample)) == len(sample) == task.HELDOUT_ROWS
    assert all(task.is_held_out(pair) for pair in sample)
    assert sample == task.heldout_sample()
    random.seed(5)
    assert sample == task.heldout_sample()


@pytest.mark.parametrize("answer", ["20", "99", "100", "198"])
def test_a_wrong_answer_is_a_number_other_than_the_right_one(answer):
    rng = random.Random(0)
    wrong = [task.wrong_answer(answer, rng) for _ in range(200)]
    assert answer not in wrong
    assert all(value.isdecimal() for value in wrong)
    assert len(set(wrong)) > 1


def test_rows_survive_parquet_with_the_columns_that_verl_reads(tmp_path):
    import pyarrow.parquet as pq

    rows = task.verl_rows([Pair(12, 34), Pair(99, 99)], "train")
    read = pq.read_table(task.write_parquet(rows, tmp_path / "sub" / "rows.parquet")).to_pylist()
    assert read == rows
    assert read[0] == {
        "data_source": task.DATA_SOURCE,
        "prompt": [{"role": "user", "content": "12+34="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "46"},
        "extra_info": {"split": "train", "index": 0},
    }
    assert read[1]["reward_model"]["ground_truth"] == "198"


@pytest.mark.parametrize(
    "response, score",
    [
        ("46", 1.0),
        (" 46\n", 1.0),
        ("146", 0.0),
        ("4", 0.0),
        ("46 46", 0.0),
        ("", 0.0),
        ("\N{REPLACEMENT CHARACTER}", 0.0),
    ],
)
def test_the_reward_is_one_for_the_exact_answer_only(response, score):
    got = task.compute_score(
        data_source=task.DATA_SOURCE, solution_str=response, ground_truth="46", extra_info={"a": 1}
    )
    assert got == score and isinstance(got, float)


def test_the_reward_accepts_what_the_host_adds_and_loads_by_the_hosts_path():
    from verl.utils.import_utils import load_extern_object

    reward = load_extern_object("pkg://fgrpo_plugin.quickstart.task", "compute_score")
    assert reward(task.DATA_SOURCE, "46", "46", None, reward_router_address="x") == 1.0


def test_importing_the_reward_imports_nothing_heavy():
    code = (
        "import sys, fgrpo_plugin.quickstart.task\n"
        "heavy = {'torch', 'transformers', 'verl', 'ray', 'vllm', 'pandas', 'pyarrow', 'numpy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_columns_that_only_later_rows_have_are_written(tmp_path):
    import pyarrow.parquet as pq

    rows = [{"a": 1}, {"a": 2, "extra_info": {"tests": "t"}}]
    assert pq.read_table(task.write_parquet(rows, tmp_path / "rows.parquet")).to_pylist() == [
        {"a": 1, "extra_info": None},
        {"a": 2, "extra_info": {"tests": "t"}},
    ]
