"""What the run hands to verl, what it keeps and refuses, and the numbers at its end, by hand."""

import io
import json

import pytest
from rich.console import Console

from fgrpo_plugin.host.settings.compose import compose
from fgrpo_plugin.host.settings.reading import is_f_divergence
from fgrpo_plugin.realmodel import run as module
from fgrpo_plugin.realmodel.options import ARMS, RealModelError, RealModelOptions
from fgrpo_plugin.realmodel.problems import Problem
from fgrpo_plugin.realmodel.prompts import PROMPTS
from fgrpo_plugin.realmodel.run import LEARNING_RATE, MAX_TOKENS, SAMPLES, TEMPERATURE, arm_name, report, verl_command


def command(tmp_path, **given):
    options = RealModelOptions(folder=tmp_path, **given)
    return verl_command(tmp_path / "run", options, tmp_path / "model", tmp_path / "train.parquet", tmp_path / "ray")


@pytest.mark.parametrize("algo", ARMS)
def test_every_algorithm_composes_and_differs_by_its_loss_alone(tmp_path, algo):
    words = [word for word in command(tmp_path, algo=algo, seed=7, learning_rate=3e-5)[3:] if "hydra." not in word]
    config = compose(words)
    assert is_f_divergence(config) == (algo in ("f_grpo", "released"))
    assert config.actor_rollout_ref.actor.use_kl_loss == (algo == "grpo_kl")
    assert config.actor_rollout_ref.actor.optim.lr == 3e-5 and config.data.seed == 7
    # The model is screened as it is sampled in training, and evaluated with the same limit.
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.n, rollout.temperature, rollout.response_length) == (SAMPLES, TEMPERATURE, MAX_TOKENS)
    assert config.data.train_batch_size == module.PROMPTS_A_STEP
    assert rollout.max_model_len == config.data.max_prompt_length + MAX_TOKENS
    assert config.reward.custom_reward_function.path == "pkg://fgrpo_plugin.realmodel.reward"
    assert config.trainer.resume_mode == "auto" and config.trainer.save_freq > 0


def test_a_run_s_folder_tells_it_from_the_others(tmp_path):
    names = {
        arm_name(RealModelOptions(folder=tmp_path, **given))
        for given in ({}, {"seed": 1}, {"algo": "grpo"}, {"divergence": "kl"}, {"learning_rate": 0.0})
    }
    assert len(names) == 5 and f"f_grpo-pearson-lr{LEARNING_RATE:g}-seed0" in names


def test_a_folder_of_other_inputs_is_refused(tmp_path):
    module._keep_inputs(tmp_path, RealModelOptions(folder=tmp_path))
    module._keep_inputs(tmp_path, RealModelOptions(folder=tmp_path, algo="grpo"))  # another run on the same
    with pytest.raises(RealModelError, match="was begun with DATA="):
        module._keep_inputs(tmp_path, RealModelOptions(folder=tmp_path, data=(tmp_path,)))
    with pytest.raises(RealModelError, match="was begun with MODEL=SmolLM2"):
        module._keep_inputs(tmp_path, RealModelOptions(folder=tmp_path, model=tmp_path))


def answer(text, tokens=5, ended=True):
    return [{"text": text, "tokens": tokens, "ended": ended}]


def test_a_result_holds_each_problem_and_the_paired_difference(tmp_path):
    problems = [Problem("a", "1"), Problem("b", "2"), Problem("c", "3"), Problem("d", "4")]
    before = {"0": answer("1"), "1": answer("5"), "2": answer("none", 9, False), "3": answer("5")}
    after = {"0": answer("5"), "1": answer("2"), "2": answer("3"), "3": answer("5")}
    lines = [{"step": n, "data": {"critic/score/mean": n / 10, "timing_s/step": 60.0 + n}} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = module._result(tmp_path, RealModelOptions(folder=tmp_path, seed=3), problems, before, after, 99.6)
    assert found["right"] == {"before": "1000", "after": "0110"} and found["gain"] == 0.25
    assert (found["before"]["right"], found["after"]["right"]) == (0.25, 0.5)
    assert (found["before"]["cut"], found["before"]["parsable"], found["before"]["tokens"]) == (0.25, 0.75, 6.0)
    assert found["rewards"] == [0.1, 0.2, 0.3] and found["seconds_a_step"] == 62.0 and found["seconds"] == 100
    low, high = found["gain_interval"]
    assert low == -0.5 and high == 1.0  # of (-1, 1, 1, 0), resampled
    said = io.StringIO()
    report(found, Console(file=said, width=140))
    assert "no difference is shown" in said.getvalue() and "0.250" in said.getvalue() and "+0.250" in said.getvalue()


def test_problems_of_which_none_is_solved_sometimes_are_refused(tmp_path, monkeypatch):
    problems = [Problem(f"problem {n}", "1") for n in range(20)]
    asked = {}

    def always_wrong(model, chats, output, **how):
        asked.update(how)
        assert chats["0"] == [*PROMPTS[module.CHOSEN], {"role": "user", "content": "problem 0"}]
        return {key: answer("2") * SAMPLES for key in chats}

    monkeypatch.setattr(module, "responses", always_wrong)
    lines = module.Lines(Console(file=io.StringIO()))
    with pytest.raises(RealModelError, match="of 20 training problems the model solves 0 sometimes"):
        module._screen(tmp_path, problems, tmp_path, lambda done, total: None, lines)
    assert (asked["samples"], asked["temperature"], asked["max_tokens"]) == (SAMPLES, TEMPERATURE, MAX_TOKENS)
    assert not (tmp_path / "train.parquet").exists()


def test_a_resumed_run_has_every_step_once_and_a_trained_one_is_not_trained_again(tmp_path):
    def write(*rows):
        lines = [json.dumps({"step": step, "data": {"critic/score/mean": value}}) + "\n" for step, value in rows]
        (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 9, "da')

    write((1, 0.1), (2, 0.2), (3, 0.3))
    module._keep_metrics(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    write((3, 0.5), (4, 0.6))  # the third was made again, from the checkpoint of the second
    module._keep_metrics(tmp_path)
    write((5, 0.7))
    assert [(row["step"], row["data"]["critic/score/mean"]) for row in module._metrics(tmp_path)] == [
        (1, 0.1), (2, 0.2), (3, 0.5), (4, 0.6), (5, 0.7),
    ]  # fmt: skip
    assert not module._is_trained(tmp_path, 5)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    assert module._is_trained(tmp_path, 5) and not module._is_trained(tmp_path, 15)
