"""The runner's inputs, its command line for the host, and its summary; the host itself is started in tests/e2e."""

import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.quickstart.run import (
    QuickstartError,
    QuickstartOptions,
    _hybrid,
    _Inputs,
    host_command,
    run_quickstart,
)
from fgrpo_plugin.quickstart.summary import draw, heldout_accuracies, read_metrics, summarize

ROW = {
    "prompt": [{"role": "user", "content": "1+1="}],
    "data_source": "openai/gsm8k",
    "reward_model": {"style": "rule", "ground_truth": "2"},
}


def _jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(algo="ppo"), "ALGO=ppo"),
        (dict(divergence="nope"), "DIVERGENCE=nope"),
        (dict(steps=0), "STEPS=0"),
        (dict(seed=-1), "SEED=-1"),
        (dict(learning_rate=2.0), "learning-rate=2.0"),
        (dict(model=Path("/nowhere/model")), "MODEL=/nowhere/model: there is no such folder"),
        (dict(data=Path("/nowhere/rows.jsonl")), "DATA=/nowhere/rows.jsonl: there is no such file"),
        (dict(divergence="alpha"), "DIVERGENCE=alpha needs its order"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(QuickstartError) as error:
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", **options))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{k: v for k, v in ROW.items() if k != "prompt"}] * 8, "column prompt is missing (found: data_source"),
        ([*[ROW] * 7, {**ROW, "prompt": "1+1="}], "row 7: 'prompt' must be a list of messages"),
        ([*[ROW] * 7, {**ROW, "reward_model": {"style": "rule"}}], "row 7: 'reward_model' must be a mapping"),
        ([*[ROW] * 7, {k: v for k, v in ROW.items() if k != "prompt"}], "row 7: 'prompt' must be a list of messages"),
        ([*[ROW] * 7, {**ROW, "reward_model": {"ground_truth": 2}}], "rows differ in the type of a column"),
        ([ROW] * 2, "2 rows are too few"),
        ([{**ROW, "data_source": "mine"}] * 8, "no default reward for data_source='mine'"),
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
    from fgrpo_plugin.quickstart.user_data import prepare_user_data

    assert len(prepare_user_data(_jsonl(tmp_path / "rows.json", [ROW] * 5), None).train) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actor_rollout_ref.rollout.n=1", "a group needs at least 2 answers"),
        ("actor_rollout_ref.rollout.nn=4", "nn"),
    ],
)
def test_an_override_is_refused_before_the_warm_up(tmp_path, override, words):
    with pytest.raises(QuickstartError, match="--override: ") as error:
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", overrides=(override,)))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_of_the_users_own_gets_careful_settings_and_the_quick_starts_own_does_not(tmp_path):
    inputs = _Inputs(tmp_path, tmp_path / "a.parquet", tmp_path / "b.parquet", ())
    for config, careful in (({}, True), ({"fgrpo_quickstart": True}, False)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        command = host_command(tmp_path, QuickstartOptions(model=tmp_path), 7, inputs, tmp_path)
        assert ("actor_rollout_ref.actor.optim.lr=1e-06" in command) == careful
        assert ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8" in command) == careful
    (tmp_path / "config.json").write_text("{}")
    chosen = host_command(tmp_path, QuickstartOptions(model=tmp_path, learning_rate=1e-5), 7, inputs, tmp_path)
    assert [word for word in chosen if "optim.lr=" in word][-1].endswith("=1e-05")  # the last one counts


def test_a_model_without_tokenizer_and_a_used_folder_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(QuickstartError, match="the model has no tokenizer"):
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", model=tmp_path))
    with pytest.raises(QuickstartError, match="is not empty"):
        run_quickstart(QuickstartOptions(run_dir=tmp_path))


def test_the_command_line_prints_one_sentence_and_exits_2():
    result = CliRunner().invoke(app, ["quickstart", "--divergence", "nope"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fgrpo quickstart: DIVERGENCE=nope is not known; choose one of kl,")
    assert len(result.stderr.strip().splitlines()) == 1


def test_user_data_is_split_and_nothing_vanishes(tmp_path):
    from fgrpo_plugin.quickstart.user_data import prepare_user_data

    rows = [{**ROW, "reward_model": {"ground_truth": str(i)}} for i in range(25)]
    data = prepare_user_data(_jsonl(tmp_path / "rows.jsonl", rows), None)
    answers = [row["reward_model"]["ground_truth"] for row in data.train + data.heldout]
    assert sorted(answers, key=int) == [str(i) for i in range(25)]
    assert [row["reward_model"]["ground_truth"] for row in data.heldout] == ["0", "10", "20"]
    assert "data.train_batch_size=22" in data.overrides
    assert "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16" in data.overrides  # 22 x 8 rows are 11 of them


@pytest.mark.parametrize(
    "algo, lam", [("f_grpo", None), ("grpo", None), ("f_hal", None), ("f_hal", 0.0), ("f_hal", 1.0)]
)
def test_the_hosts_command_composes_and_is_valid(stock_config, inputs, tmp_path, algo, lam):
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.settings.questions import is_f_divergence
    from fgrpo_plugin.host.settings.switch import complete

    divergence = None if algo == "grpo" else "kl"
    options = QuickstartOptions(algo=algo, divergence=divergence, lam=lam, seed=3, learning_rate=1e-3)
    options.check()
    data, model = (Path(item.split("=", 1)[1]) for item in (inputs[0], inputs[2]))
    host_inputs = _Inputs(model, data, data, ("reward.custom_reward_function.path=pkg://fgrpo_plugin.quickstart.task",))
    if algo == "f_hal":
        host_inputs = _hybrid(tmp_path, model)
    command = host_command(tmp_path, options, 7, host_inputs, tmp_path)
    assert command[1:4] == [
        "-m",
        "verl.trainer.main_ppo",
        f"+fgrpo={'laptop_hybrid' if algo == 'f_hal' else 'quickstart'}",
    ]
    config = stock_config(*[word for word in command[3:] if not word.startswith("hydra.")])
    if is_f_divergence(config):
        complete(config)
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.divergence == "kl"
    validate_config(config, use_reference_policy=algo != "grpo", use_critic=False)
    if algo == "f_hal":
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.lam == (0.5 if lam is None else lam)
    assert config.algorithm.adv_estimator == algo
    assert config.actor_rollout_ref.actor.optim.lr == 1e-3 and config.trainer.total_training_steps == 7


def _metrics(path: Path, reward: list[float]) -> Path:
    lines = [{"step": 0, "data": {"val-core/fgrpo/addition/acc/mean@1": 0.25}}]
    for step, value in enumerate(reward, start=1):
        lines.append({"step": step, "data": {"critic/score/mean": value, "timing_s/step": 1.0 + step / 100}})
    lines[-1]["data"]["val-core/fgrpo/addition/acc/mean@1"] = 0.75
    _jsonl(path, lines)
    with path.open("a") as file:
        file.write('{"step": 99, "da')  # a line that is just being written
    return path


def test_summary_is_the_means_over_the_first_and_last_ten_steps(tmp_path):
    reward = [i / 100 for i in range(30)]
    metrics = _metrics(tmp_path / "metrics.jsonl", reward)
    summary = summarize(metrics, algorithm="f_grpo", divergence="kl", seed=1, steps=30, seconds_total=12.34)
    assert summary["reward_first10"] == pytest.approx(statistics.fmean(reward[:10]))
    assert summary["reward_last10"] == pytest.approx(statistics.fmean(reward[-10:]))
    assert (summary["heldout_accuracy_before"], summary["heldout_accuracy_after"]) == (0.25, 0.75)
    assert heldout_accuracies(read_metrics(metrics)) == [(0, 0.25), (30, 0.75)]
    assert summary["seconds_per_step_median"] == pytest.approx(1.155)
    expected = {"algorithm", "divergence", "seed", "reward_first10", "reward_last10", "heldout_accuracy_before"}
    expected |= {"heldout_accuracy_after", "steps", "seconds_total", "seconds_per_step_median"}
    assert expected <= summary.keys()


def test_the_picture_is_a_png_that_changes_with_the_data(tmp_path):
    import matplotlib.image

    low = draw({"a": [[0.1] * 12, [0.2] * 11]}, tmp_path / "a.png", "run", {"held-out": [(0, 0.5)]})
    high = draw({"a": [[0.9] * 12]}, tmp_path / "b.png", "run")
    first, second = matplotlib.image.imread(low), matplotlib.image.imread(high)
    assert first.shape == second.shape and first.shape[0] > 400
    assert (first != second).any()
