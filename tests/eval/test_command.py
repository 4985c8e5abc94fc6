"""The commands: a model and a server end to end, the table of several calls, and bad input in one sentence."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.eval import command, options
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = build_tokenizer()
    return save_model(build_model(tokenizer, 0), tokenizer, tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def problems(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"input": f"{n}+1=", "target": n + 1}) + "\n" for n in range(4)))
    return file


def run(*words):
    return CliRunner().invoke(app, ["eval", *map(str, words)], env={"COLUMNS": "200"})


def test_a_model_is_sampled_scored_and_shown(model, problems, tmp_path):
    out = tmp_path / "out"
    words = ["math", f"a={model}", f"b={model}", "--data", problems, "-o", out, "--samples", 2, "--max-tokens", 4]
    words += ["--instruction", "", "--limit", 3, "--temperature", 1]
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    assert "sums: 3 problems x 2 samples" in done.stdout and "a on sums: 3 of 3" in done.stdout
    for name in ("a", "b"):
        scores = json.loads((out / name / "sums.scores.json").read_text())
        assert len(scores["rows"]) == 3 and scores["sampling"]["temperature"] == 1.0
        kept = (out / name / "sums.jsonl").read_text()
        assert kept.count("\n") == 4 and len(json.loads(kept.splitlines()[1])["responses"]) == 2
        assert (out / name / "sums.log").is_file()
    table = (out / "table.md").read_text()
    assert table.startswith("| set | model | problems | pass@1 | pass@2 | maj@2 | pass@1 - a | with an answer | cut |")
    assert "| Relative Overall (base a) |" in table and table.count("| sums |") == 2
    times = {name: (out / name / "sums.jsonl").stat().st_mtime_ns for name in ("a", "b")}
    again = run(*words)
    assert again.exit_code == 0 and (out / "table.md").read_text() == table  # what is there is kept
    assert times == {name: (out / name / "sums.jsonl").stat().st_mtime_ns for name in ("a", "b")}

    shown = run("table", out, "--base", "b", "--k", 1)
    assert shown.exit_code == 0
    assert (
        (out / "table.md").read_text().startswith("| set | model | problems | pass@1 | pass@1 - b | with an answer |")
    )
    one = run("table", out, "--model", "b")
    assert one.exit_code == 0 and "Relative Overall" not in one.stdout
    refused = run(*words[:-1], 0.5)
    assert refused.exit_code == 2 and re.search(r"other settings \(temperature 1\.0, now 0\.5\)", refused.stderr)


def test_a_model_is_asked_what_it_ought_to_refuse_and_a_judge_about_it(model, problems, tmp_path):
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["input"]}) + "\n" for row in rows))
    judge = shutil.copytree(model, tmp_path / "judge")
    words = ["safety", model, "--harmful", prompts, "-o", tmp_path / "out", "--max-tokens", 4, "--judge", judge]
    words += ["--judge-guard", "--judge-max-tokens", 2]
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "tiny" / "prompts.scores.json").read_text())
    assert len(scores["rows"]) == 4 and all(row["unsafe"] in ([None], [False]) for row in scores["rows"])
    kept = tmp_path / "out" / "tiny" / "judged" / "prompts.jsonl"
    before = kept.read_text()
    assert run(*words).exit_code == 0 and kept.read_text() == before  # what is there is kept


def test_a_server_is_asked_by_the_name_of_the_model(problems, tmp_path, monkeypatch):
    asked = []

    def answer(url, name, chats, output, how, *, on_progress):
        asked.append((url, name, how.samples))
        return {key: [{"text": "1", "tokens": None, "ended": True}] * how.samples for key in chats}

    monkeypatch.setattr(options, "server_responses", answer)
    done = run("math", "org/name", "--server", "http://x/v1", "--data", problems, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert asked == [("http://x/v1", "org/name", 4)]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| sums | name | 4 | 0.250 [" in table and table.rstrip().endswith("| 1.000 | 0.000 | - |")


def bad(tmp_path):
    (tmp_path / "no_tokenizer").mkdir()
    (tmp_path / "no_tokenizer" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "columns.jsonl").write_text('{"text": "x"}\n')


@pytest.mark.parametrize(
    "words, why",
    [
        (["nowhere"], "MODEL nowhere: there is no such folder; give a local Hugging Face folder, or --server"),
        (["{tmp}/no_tokenizer"], "the model has no tokenizer"),
        (["x={model}", "x={model}"], "two models are called x"),
        (["{model}", "--base", "other"], "--base other is none of the models tiny"),
        (["{model}", "--k", "5"], "--k 5 must lie between 1 and --samples 4"),
        (["{model}", "--limit", "0"], "--limit 0 must be 1 or more"),
        (["{model}", "--samples", "2", "--temperature", "0"], "2 samples at temperature 0 are the same response"),
        (["{model}", "--output", "{tmp}/file"], "--output .*file is a file; name a folder"),
        (["{model}", "--chat-template", "{tmp}/none"], "--chat-template .*none: there is no such file"),
        (["{model}", "--tensor-parallel", "0"], "--tensor-parallel 0 must be 1 or more"),
        (["{model}", "--server", "http://x/v1", "--dtype", "float16"], "are the server's own; leave them out"),
        (["{model}", "--data", "{tmp}/columns.jsonl"], "no columns of a problem and its answer"),
        (["{model}", "--data", "{tmp}/none.jsonl"], "none.jsonl: there is no such file or folder"),
    ],
)
def test_bad_input_ends_in_one_sentence_before_anything_is_sampled(model, problems, tmp_path, words, why, monkeypatch):
    monkeypatch.setattr(command, "evaluate", lambda *args, **kwargs: pytest.fail("sampled"))
    bad(tmp_path)
    words = [word.format(tmp=tmp_path, model=model) for word in words]
    done = run(
        "math",
        *words,
        *([] if "--data" in words else ["--data", problems]),
        *([] if "--output" in words else ["-o", tmp_path / "out"]),
    )
    assert done.exit_code == 2 and done.stderr.startswith("fgrpo eval math: "), done.output
    assert re.search(why, done.stderr) and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_chat_template_is_refused_unless_one_is_given(model, problems, tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    shutil.copytree(model, plain)
    for file in plain.glob("*.jinja"):
        file.unlink()
    config = plain / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}))
    done = run("math", plain, "--data", problems, "-o", tmp_path / "out")
    assert done.exit_code == 2 and "its tokenizer has no chat template" in done.stderr
    reached = []
    monkeypatch.setattr(command, "evaluate", lambda *args, **kwargs: reached.append(args))
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    run("math", plain, "--data", problems, "-o", tmp_path / "out", "--chat-template", tmp_path / "t.jinja")
    assert reached


def test_the_table_of_nothing_is_one_sentence(tmp_path):
    done = run("table", tmp_path)
    assert done.exit_code == 2 and done.stderr.startswith(f"fgrpo eval table: {tmp_path} holds no scores; make them")
