"""What the run hands to verl, what it keeps and refuses, and the numbers at its end, by hand."""

import contextlib
import io
import json

import pyarrow.parquet as pq
import pytest

from fgrpo_plugin.host.settings.compose import compose
from fgrpo_plugin.host.settings.reading import is_f_divergence
from fgrpo_plugin.quickstart.model import build_tokenizer
from fgrpo_plugin.quickstart.options import QuickstartError
from fgrpo_plugin.realmodel import run as module
from fgrpo_plugin.realmodel.options import ARMS, RealModelError, RealModelOptions
from fgrpo_plugin.realmodel.problems import Problem
from fgrpo_plugin.realmodel.prompts import PROMPTS
from fgrpo_plugin.realmodel.run import LEARNING_RATE, MAX_TOKENS, SAMPLES, TEMPERATURE, arm_name, report, verl_command
from fgrpo_plugin.terminal import Terminal


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
    assert config.data.max_prompt_length == module.MAX_PROMPT and config.data.filter_overlong_prompts
    assert rollout.max_model_len == config.data.max_prompt_length + MAX_TOKENS
    assert config.reward.custom_reward_function.path == "pkg://fgrpo_plugin.realmodel.reward"
    assert config.trainer.resume_mode == "auto" and config.trainer.save_freq > 0


def test_a_run_s_folder_tells_it_from_the_others(tmp_path):
    names = {
        arm_name(RealModelOptions(folder=tmp_path, **given))
        for given in ({}, {"seed": 1}, {"algo": "grpo"}, {"divergence": "kl"}, {"learning_rate": 0.0})
    }
    assert len(names) == 5 and f"f_grpo-pearson-lr{LEARNING_RATE:g}-seed0" in names


@pytest.mark.parametrize("name", ["two words", "a,b", "Jürgen's"])
def test_a_folder_of_any_name_reaches_verl_as_it_is(tmp_path, name):
    config = compose([word for word in command(tmp_path / name)[3:] if not word.startswith("hydra.")])
    folder = tmp_path / name
    assert config.actor_rollout_ref.model.path == str(folder / "model")
    assert config.data.train_files == config.data.val_files == str(folder / "train.parquet")
    assert config.trainer.default_local_dir == str(folder / "run" / "checkpoints")


PROBLEMS = (Problem("a", "1"),)


def begin(folder, problems=PROBLEMS, **given):
    options = RealModelOptions(folder=folder, **given)
    run = folder / arm_name(options)
    module._begin(folder, run, options, problems)
    return run, options


def test_a_folder_of_other_inputs_is_refused(tmp_path):
    begin(tmp_path)
    begin(tmp_path, algo="grpo")  # another run on the same
    for given, words in (
        ({"data": (tmp_path,)}, "was begun with DATA=its default; for .* name another RUN"),
        ({"model": tmp_path}, "was begun with MODEL=SmolLM2"),
        ({"problems": [Problem("a", "2")]}, "was begun with other problems: DATA has changed; name another RUN"),
    ):
        with pytest.raises(RealModelError, match=words):
            begin(tmp_path, **given)


def test_a_run_of_other_steps_or_overrides_is_refused_once_it_is_trained(tmp_path):
    run, options = begin(tmp_path, steps=3)
    begin(tmp_path, steps=4)  # nothing is trained yet
    module.keep(run / module.SETTINGS, module._settings(options))
    begin(tmp_path, steps=3)
    for given, words in (
        ({"steps": 4}, "was begun with STEPS=3; for 4 name another RUN"),
        ({"steps": 3, "overrides": ("a=1",)}, r"was begun with --override=its default; for \['a=1'\] name another RUN"),
    ):
        with pytest.raises(RealModelError, match=words):
            begin(tmp_path, **given)
    with pytest.raises(RealModelError, match="is one run among others; name the folder that it is in"):
        begin(run)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RealModelError, match=r"RUN=.*file/runs cannot be written \(Not a directory\); name another"):
        begin(tmp_path / "file" / "runs")


@pytest.fixture
def alone(monkeypatch):
    """As if no other run were under way; nothing is fetched or sampled."""

    def nothing(*given, **more):
        raise AssertionError("something expensive was begun")

    monkeypatch.setattr(module, "only_run", lambda: contextlib.nullcontext(True))
    for name in ("smollm2", "responses", "train"):
        monkeypatch.setattr(module, name, nothing)


@pytest.mark.parametrize(
    "given, rows, words",
    [
        ({}, [{"input": "a", "target": "none"}] * 20, "row 0 has no number as its answer"),
        ({}, [{"input": "a", "target": 1}] * 20, "1 problems are too few"),
        ({"overrides": ("trainer.nnodez=1",)}, None, r"--override: trainer\.nnodez=1"),
    ],
)
def test_what_was_asked_for_is_checked_before_anything_is_fetched(tmp_path, alone, monkeypatch, given, rows, words):
    def check(command, run):  # tests/quickstart has its own
        assert command[1:4] == ["-m", "verl.trainer.main_ppo", "+fgrpo=smollm2"] and run.parent == tmp_path / "runs"
        raise QuickstartError(f"--override: {command[-1]}")

    monkeypatch.setattr(module, "check_command", check)
    data = tmp_path / "problems.jsonl"
    rows = rows or [{"input": f"problem {n}", "target": n} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=words):
        module.run_realmodel(RealModelOptions(folder=tmp_path / "runs", data=(data,), **given))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def stages(tmp_path, monkeypatch, alone):
    """Each stage writes what it writes and notes that it was made; the one named in `stop` breaks off half-way."""
    made, stop = [], []

    def stage(name):
        made.append(name)
        if name in stop:
            raise KeyboardInterrupt

    def sampled(model, chats, output, how, **more):
        stage(output.name)
        return {key: (answer("1") + answer("2"))[: how.samples] for key in chats}

    def trained(run, command, steps, *given, **more):
        rows = [json.dumps({"step": n, "data": {"critic/score/mean": 0.5}}) + "\n" for n in range(1, steps + 1)]
        (run / "metrics.jsonl").write_text("".join(rows))
        stage("train")
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(steps))

    def exported(checkpoints, folder, **more):
        stage("export")
        folder.mkdir()
        (folder / "config.json").touch()

    def parquet(rows, path):
        path.write_text("half")
        stage("parquet")
        return path

    def model(folder):
        stage("model")
        return folder

    fakes = {"responses": sampled, "train": trained, "export_run": exported, "write_parquet": parquet}
    fakes |= {"smollm2": model, "_short": lambda problems, *given: list(problems)}
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps({"input": f"problem {n}", "target": 1}) + "\n" for n in range(20)))

    def run(*stopped):
        made.clear()
        stop[:] = stopped
        options = RealModelOptions(folder=tmp_path / "runs", data=(data,), steps=2)
        with contextlib.ExitStack() as stack:
            if stopped:
                stack.enter_context(pytest.raises(KeyboardInterrupt))
            module.run_realmodel(options, Terminal(file=io.StringIO()))
        return list(made)

    return run, tmp_path / "runs"


def test_what_was_stopped_half_way_is_made_again_and_what_is_whole_is_not(stages):
    run, folder = stages
    own = folder / arm_name(RealModelOptions(folder=folder))
    assert run("parquet") == ["model", "before.jsonl", "screened.jsonl", "parquet"]
    assert not (folder / "train.parquet").exists()
    assert run("train") == ["model", "before.jsonl", "screened.jsonl", "parquet", "train"]
    assert (folder / "train.parquet").is_file() and not (own / "model").exists()
    assert run("export") == ["model", "before.jsonl", "train", "export"]
    (own / "after.jsonl").write_text("of a model that is not there any more")
    assert run("after.jsonl") == ["model", "before.jsonl", "export", "after.jsonl"]
    assert not (own / "after.jsonl").exists()
    assert run() == ["model", "before.jsonl", "after.jsonl"]
    result = json.loads((own / "result.json").read_text())
    assert result["rewards"] == [0.5, 0.5] and result["gain"] == 0.0 and (own / "reward_curve.png").is_file()
    assert not (own / "checkpoints").exists() and (own / "model" / "config.json").is_file()
    assert run() == ["model", "before.jsonl"]  # the result is there: it is shown again


def test_prompts_that_verl_would_leave_out_are_left_out_before_they_are_sampled(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    rendered = len(
        tokenizer.apply_chat_template(module.chat(Problem("", "1"), module.CHOSEN), return_dict=True)["input_ids"]
    )
    monkeypatch.setattr(module, "MAX_PROMPT", module.MAX_PROMPT + rendered)
    most, said = 0, []
    problems = [Problem("1" * length, "1") for length in range(240, 260)]
    found = module._short(problems, tmp_path, said.append)
    for problem in problems:
        messages = module.chat(problem, module.CHOSEN)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert (problem in found) == (len(ids) <= module.MAX_PROMPT)
        most = max(most, len(ids) if problem in found else 0)
    assert most == module.MAX_PROMPT and 0 < len(found) < 20
    assert said == [
        f"left out: {20 - len(found)} training problems whose prompts are longer than {module.MAX_PROMPT} tokens"
    ]
    with pytest.raises(RealModelError, match=r"DATA: 1 of 4 training problems make a prompt of at most .* shorter"):
        module._short([found[0], *problems[-3:]], tmp_path, said.append)


def answer(text, tokens=5, ended=True):
    return [{"text": text, "tokens": tokens, "ended": ended}]


def test_a_result_holds_each_problem_and_the_paired_difference(tmp_path):
    problems = [Problem("a", "1"), Problem("b", "2"), Problem("c", "3"), Problem("d", "4")]
    before = {"0": answer("1"), "1": answer("5"), "2": answer("none", 9, False), "3": answer("5")}
    after = {"0": answer("5"), "1": answer("2"), "2": answer("3"), "3": answer("5")}
    seconds = (60.0, 71.0, 65.0, 90.0)
    lines = [
        {"step": n, "data": {"critic/score/mean": n / 10, "timing_s/step": took}} for n, took in enumerate(seconds, 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = module._result(tmp_path, RealModelOptions(folder=tmp_path, seed=3, steps=4), problems, before, after)
    assert found["right"] == {"before": "1000", "after": "0110"} and found["gain"] == 0.25
    assert (found["before"]["right"], found["after"]["right"]) == (0.25, 0.5)
    assert (found["before"]["cut"], found["before"]["parsable"], found["before"]["tokens"]) == (0.25, 0.75, 6.0)
    assert found["rewards"] == [0.1, 0.2, 0.3, 0.4] and found["seconds_a_step"] == 68.0
    assert (found["problems"], found["steps"], found["seed"], found["learning_rate"]) == (4, 4, 3, LEARNING_RATE)
    assert (found["algorithm"], found["divergence"]) == ("f_grpo", "pearson")
    # Of 4 coins that fall with 1/4 and 1/2, resampled: 2.5 % of the means lie at or below the lower ends.
    assert found["before_interval"] == (0.0, 0.75) and found["after_interval"] == (0.0, 1.0)
    low, high = found["gain_interval"]
    assert low == -0.5 and high == 1.0  # of (-1, 1, 1, 0), resampled
    said = io.StringIO()
    report(found, "my [model]", Terminal(file=said, width=140))
    shown = [" ".join(line.replace("\u2502", " ").split()) for line in said.getvalue().splitlines()]
    assert "f_grpo pearson seed 3: my [model], 4 held-out problems, greedy" in shown
    assert "right 0.250 [0.000, 0.750] 0.500 [0.000, 1.000]" in shown and "with a number 0.750 1.000" in shown
    assert "cut at the limit 0.250 0.000" in shown and "tokens 6.0 5.0" in shown
    assert "after - before: +0.250, 95 % interval [-0.500, +1.000] (paired): no difference is shown" in shown


@pytest.mark.parametrize(
    "interval, verdict",
    [
        ((0.0, 0.5), "no difference is shown"),
        ((-0.5, 0.0), "no difference is shown"),
        ((0.1, 0.5), "the difference is not chance"),
        ((-0.5, -0.1), "the difference is not chance"),
    ],
)
def test_a_difference_is_one_where_its_interval_leaves_zero_out(interval, verdict):
    side = {"right": 0.5, "parsable": 1.0, "cut": 0.0, "tokens": 5.0}
    result = {"algorithm": "grpo", "divergence": None, "seed": 0, "problems": 4, "before": side, "after": side}
    result |= {"before_interval": (0, 1), "after_interval": (0, 1), "gain": 0.0, "gain_interval": interval}
    said = io.StringIO()
    report(result, "tiny", Terminal(file=said, width=140))
    assert verdict in said.getvalue() and "grpo seed 0: tiny, 4" in said.getvalue()


def test_problems_of_which_none_is_solved_sometimes_are_refused(tmp_path, monkeypatch):
    problems = [Problem(f"problem {n}", "1") for n in range(20)]
    asked = []

    def always_wrong(model, chats, output, how, **more):
        asked.append(how)
        assert chats["0"] == [*PROMPTS[module.CHOSEN], {"role": "user", "content": "problem 0"}]
        return {key: answer("2") * SAMPLES for key in chats}

    monkeypatch.setattr(module, "responses", always_wrong)
    monkeypatch.setattr(module, "SCREENED", 18)
    lines = module.Lines(Terminal(file=io.StringIO()))
    with pytest.raises(RealModelError, match="of 18 training problems the model solves 0 sometimes"):
        module._screen(tmp_path, problems, tmp_path, lambda done, total: None, lines)
    assert [(how.samples, how.temperature, how.max_tokens) for how in asked] == [(SAMPLES, TEMPERATURE, MAX_TOKENS)]
    assert not (tmp_path / "train.parquet").exists()


@pytest.mark.parametrize("solved", [3, 4])
def test_a_steps_prompts_are_the_least_that_is_trained_on(tmp_path, monkeypatch, solved):
    def sampled(model, chats, output, how, **more):
        return {key: (answer("1") if int(key) < solved else answer("2")) + answer("2") for key in chats}

    monkeypatch.setattr(module, "responses", sampled)
    problems, lines = [Problem(f"problem {n}", "1") for n in range(20)], module.Lines(Terminal(file=io.StringIO()))
    given = tmp_path, problems, tmp_path, lambda done, total: None, lines
    if solved < module.PROMPTS_A_STEP == 4:
        with pytest.raises(RealModelError, match="solves 3 sometimes and not always, and 4 are a step's"):
            module._screen(*given)
    else:
        rows = pq.read_table(module._screen(*given)).to_pylist()
        assert [row["extra_info"]["index"] for row in rows] == ["0", "1", "2", "3"]
        assert rows[0]["prompt"][-1] == {"role": "user", "content": "problem 0"}


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
