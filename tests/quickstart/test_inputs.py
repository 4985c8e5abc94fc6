"""The user's own prompts."""

import json

import pytest

from fgrpo_plugin.quickstart.options import QuickstartError, QuickstartOptions
from fgrpo_plugin.quickstart.run import run_quickstart
from tests.support.quickstart_rows import _jsonl

ROW = {
    "prompt": [{"role": "user", "content": "1+1="}],
    "data_source": "openai/gsm8k",
    "reward_model": {"style": "rule", "ground_truth": "2"},
}


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{k: v for k, v in ROW.items() if k != "prompt"}] * 8, "column prompt is missing (found: data_source"),
        ([*[ROW] * 7, {**ROW, "prompt": "1+1="}], "row 7: 'prompt' is text"),
        ([*[ROW] * 7, {**ROW, "reward_model": {"style": "rule"}}], "row 7: 'reward_model' must be an object"),
        ([*[ROW] * 7, {k: v for k, v in ROW.items() if k != "prompt"}], "row 7: 'prompt' must be a list of messages"),
        (
            [*[ROW] * 7, {**ROW, "prompt": [{"role": "user", "content": ["a"]}]}],
            "row 7: the model's chat template cannot",
        ),
        ([*[ROW] * 7, {**ROW, "reward_model": {"ground_truth": 2}}], "row 7: reward_model.ground_truth is a int"),
        (
            [*[{**ROW, "extra_info": {"i": 1}}] * 7, {**ROW, "extra_info": {"i": "x"}}],
            "rows differ in the type of a column",
        ),
        ([ROW] * 2, "2 rows are too few"),
        ([{**ROW, "data_source": "mine"}] * 8, "verl has no reward for data_source='mine'"),
        ([{**ROW, "prompt": [{"role": "user", "content": "x" * 600}]}] * 8, "too many for the tiny model"),
    ],
)
def test_bad_data_is_refused_by_row_and_column(tmp_path, rows, words):
    data = _jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(QuickstartError) as error:
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", data=data))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_broken_line_names_the_file(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(4 * (json.dumps(ROW) + "\n") + "{broken\n")
    with pytest.raises(QuickstartError, match=r"DATA=.*rows.jsonl: cannot be read \(.*\); correct that row"):
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", data=data))


def test_one_object_a_line_is_read_from_a_json_file_too(tmp_path):
    from fgrpo_plugin.quickstart.inputs import prepare_user_data

    assert len(prepare_user_data(_jsonl(tmp_path / "rows.json", [ROW] * 5), None).train) == 4


def test_user_data_is_split_and_nothing_vanishes(tmp_path):
    from fgrpo_plugin.quickstart.inputs import prepare_user_data

    rows = [{**ROW, "reward_model": {"ground_truth": str(i)}} for i in range(25)]
    data = prepare_user_data(_jsonl(tmp_path / "rows.jsonl", rows), None)
    answers = [row["reward_model"]["ground_truth"] for row in data.train + data.heldout]
    assert sorted(answers, key=int) == [str(i) for i in range(25)]
    assert [row["reward_model"]["ground_truth"] for row in data.heldout] == ["0", "10", "20"]
    assert "data.train_batch_size=22" in data.overrides
    assert "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16" in data.overrides  # 22 x 8 rows are 11 of them
