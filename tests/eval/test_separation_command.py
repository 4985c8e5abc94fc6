"""The command on tiny models: what it prints and writes, that it goes on, and bad input in one sentence."""

import csv
import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fgrpo_plugin.cli import evaluation
from fgrpo_plugin.eval import hidden_states, separation_command
from fgrpo_plugin.eval.separation import Estimation, Separation, separation
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model
from tests.eval.test_command import run

SAFE = [f"How do I bake bread for {count} guests?" for count in range(12)]
HARMFUL = [f"How do I cheat {count} friends in a board game?" for count in range(14)]
HOW = ["--directions", 4, "--resamples", 200]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    return [save_model(build_model(tokenizer, seed), tokenizer, folder / name) for seed, name in enumerate(("a", "b"))]


@pytest.fixture
def files(tmp_path):
    for name, column, prompts in (("kitchen", "prompt", SAFE), ("advbench", "goal", HARMFUL)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[column], *[[prompt] for prompt in prompts]])
    return ["--safe", tmp_path / "kitchen.csv", "--harmful", tmp_path / "advbench.csv", "-o", tmp_path / "out"]


def one_at_a_time(folder, prompts):
    """(prompts, layers + 1, dimensions), each prompt alone through the whole model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            states = model(**ids, output_hidden_states=True).hidden_states
        found.append(np.stack([layer[0, -1].numpy() for layer in states]))
    return np.stack(found)


def test_two_models_are_measured_shown_drawn_and_kept(models, files, tmp_path, monkeypatch):
    done = run("separation", f"base={models[0]}", models[1], *files, *HOW, "--shrinkage", 0.2, "--seed", 3)
    assert done.exit_code == 0, done.stderr
    assert "safe: 12 prompts (kitchen)" in done.stdout and "harmful: 14 prompts (advbench)" in done.stdout
    assert "base: hidden states: 26 of 26" in done.stdout and "b: distances: 3 of 3" in done.stdout
    out = tmp_path / "out"
    found = json.loads((out / "separation.json").read_text())
    how = Estimation(4, 0.2, 200, 3)
    assert found["settings"] == {
        "directions": 4, "shrinkage": 0.2, "resamples": 200, "seed": 3, "prompts": {"safe": 12, "harmful": 14}
    }  # fmt: skip
    for name, folder in zip(("base", "b"), models, strict=True):
        safe, harmful = one_at_a_time(folder, SAFE), one_at_a_time(folder, HARMFUL)
        about = found["models"][name]
        assert about["from"] == str(folder) and about["dtype"] == "float32" and len(about["weights"]) == 16
        for number, layer in enumerate(about["layers"]):
            expected = separation(safe[:, number], harmful[:, number], how)
            assert layer == pytest.approx(vars(expected), rel=1e-3, abs=1e-5)
        # A token a byte, and one that opens the turn.
        expected = {
            kind: np.mean([len(text) + 1 for text in of]) for kind, of in (("safe", SAFE), ("harmful", HARMFUL))
        }
        assert about["tokens"] == pytest.approx(expected)
    line = f"base: {expected['safe']:.1f} tokens a safe prompt, {expected['harmful']:.1f} a harmful one"
    assert line in done.stdout
    table = (out / "separation.md").read_text()
    first = Separation(**found["models"]["base"]["layers"][1])
    assert f"| 1 | {first.distance:.3f} [{first.low:.3f}, {first.high:.3f}] | {first.chance:.3f}, " in table
    assert table.startswith("| model | largest distance | at layer | chance there, 95 % | layers above chance |")
    assert "12 safe and 14 harmful prompts; 4 directions, shrinkage 0.2; " in table and "200 relabellings" in table
    assert (out / "separation.png").read_bytes().startswith(b"\x89PNG")
    assert "largest distance" in done.stdout and "200 relabellings" in done.stdout

    monkeypatch.setattr(hidden_states, "_load", None)  # states are there
    again = run("separation", f"base={models[0]}", models[1], *files, *HOW, "--shrinkage", 0.2, "--seed", 3)
    assert again.exit_code == 0, again.stderr
    assert (out / "separation.md").read_text() == table
    other = run("separation", models[1], *files, *HOW, "--shrinkage", 0)
    assert other.exit_code == 0 and "base" not in (out / "separation.md").read_text()


def test_prompts_stand_on_their_side_once_wherever_they_come_from(models, files, tmp_path):
    rows = [["prompt", "type", "label"], *[[text, "homonyms", "safe"] for text in SAFE[3:]]]
    rows += [["How do I peek at cards?", "contrast_homonyms", "unsafe"], [HARMFUL[0], "contrast_homonyms", "unsafe"]]
    with (tmp_path / "xstest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    done = run("separation", models[0], *files, "--data", tmp_path / "xstest.csv", *HOW)
    assert done.exit_code == 0, done.stderr
    assert "safe: 12 prompts (kitchen)" in done.stdout and "harmful: 15 prompts (advbench, xstest)" in done.stdout
    assert "10 rows ask what an earlier row asks and are left out" in done.stdout
    limited = run("separation", models[0], *files, *HOW, "--limit", 11)
    assert limited.exit_code == 0 and "safe: 11 prompts" in limited.stdout and "left out" not in limited.stdout


def test_brackets_and_colons_in_names_are_printed_as_they_are(models, files, tmp_path):
    for file in ("kitchen", "advbench"):
        (tmp_path / f"{file}.csv").rename(tmp_path / f"{file}[bold]:cat:.csv")
    words = ["--safe", tmp_path / "kitchen[bold]:cat:.csv", "--harmful", tmp_path / "advbench[bold]:cat:.csv"]
    done = run("separation", models[0], *words, "-o", tmp_path / "o[red]", *HOW)
    assert done.exit_code == 0, done.stderr
    assert "safe: 12 prompts (kitchen[bold]:cat:)" in done.stdout and "o[red]/separation.md, .json" in done.stdout


def test_prompts_of_both_kinds_that_are_the_same_to_a_model_are_refused(models, files, tmp_path):
    with (tmp_path / "kitchen.csv").open("a") as file:
        file.write(f"{HARMFUL[3].upper()}\n")
    assert run("separation", models[0], *files, *HOW).exit_code == 0  # to its own template they differ
    (tmp_path / "t.jinja").write_text("{{ messages[0].content.lower() }}")
    done = run("separation", models[0], *files[:-1], tmp_path / "other", *HOW, "--chat-template", tmp_path / "t.jinja")
    both = f"{HARMFUL[3].upper()!r} and {HARMFUL[3]!r}"
    assert f"a: its chat template makes the same tokens of {both}, one safe and one harmful; remove" in done.stderr
    assert done.exit_code == 2 and not (tmp_path / "other").exists()


def test_a_damaged_file_is_said_and_computed_again(models, files, tmp_path):
    assert run("separation", models[0], *files, *HOW).exit_code == 0
    table = (tmp_path / "out" / "separation.md").read_text()
    part = next((tmp_path / "out" / "a" / "states").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-9])
    done = run("separation", models[0], *files, *HOW)
    assert "a: 1 damaged files of states are computed again" in done.stdout
    assert (tmp_path / "out" / "separation.md").read_text() == table


def test_another_template_and_dtype(models, files, tmp_path):
    (tmp_path / "t.jinja").write_text("Say: {{ messages[0].content }}")
    words = ["--chat-template", tmp_path / "t.jinja", "--dtype", "bfloat16", "--batch-size", 3]
    done = run("separation", models[0], *files, *HOW, *words)
    assert done.exit_code == 0, done.stderr
    about = json.loads((tmp_path / "out" / "separation.json").read_text())["models"]["a"]
    assert about["dtype"] == "bfloat16"
    assert about["tokens"]["safe"] == pytest.approx(np.mean([len(f"Say: {text}") for text in SAFE]))
    refused = run("separation", models[0], *files, *HOW)
    assert refused.exit_code == 2 and "other settings (dtype bfloat16, now float32)" in refused.stderr


def test_states_that_are_not_finite_and_singular_covariances_are_named_by_layer(models, files, tmp_path, monkeypatch):
    nan = shutil.copytree(models[0], tmp_path / "nan")
    weights = load_file(nan / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.inf
    save_file(weights, nan / "model.safetensors", metadata={"format": "pt"})
    done = run("separation", nan, *files, *HOW)
    assert done.exit_code == 2 and "its hidden states are not finite from layer 2 on (dtype float32)" in done.stderr

    def refused(safe, harmful, how):
        raise ValueError("a covariance is singular; raise the shrinkage.")

    monkeypatch.setattr(separation_command, "separation", refused)
    done = run("separation", models[0], *files, *HOW)
    assert done.exit_code == 2 and "a, layer 0: a covariance is singular; raise the shrinkage." in done.stderr


@pytest.mark.parametrize(
    "words, why",
    [
        (["nowhere"], r"MODEL nowhere: there is no such folder; give a local Hugging Face folder\.$"),
        (["{tmp}/bare"], "config.json is missing"),
        (["{tmp}/no_tokenizer"], "the model has no tokenizer"),
        (["{tmp}/no_template"], "its tokenizer has no chat template; set tokenizer.chat_template and save it"),
        (["x={model}", "x={model}"], "two models are called x"),
        (["{model}", "--directions", "0"], "directions=0 must be 1 or more"),
        (["{model}", "--directions", "7"], "--safe: 12 prompts, and 7 directions need 14 of each kind; name more"),
        (["{model}", "--limit", "9"], "--safe: 9 prompts, and 4 directions need 10 of each kind; name more prompts, o"),
        (["{model}", "--harmful", "{tmp}/few.csv"], "--harmful: 1 prompts, and 4 directions need 10 of each kind"),
        (["{model}", "--shrinkage", "1.5"], r"shrinkage=1\.5 must lie between 0 and 1"),
        (["{model}", "--resamples", "0"], "resamples=0 must be 1 or more"),
        (["{model}", "--seed", "-1"], "seed=-1 must be 0 or more"),
        (["{model}", "--batch-size", "0"], "--batch-size 0 must be 1 or more"),
        (["{model}", "--dtype", "int8"], "--dtype int8 is not known; choose one of float32, bfloat16, float16"),
        (["{model}", "--limit", "0"], "--limit 0 must be 1 or more"),
        (["{model}", "-o", "{tmp}/few.csv"], r"--output .*few\.csv is a file; name a folder"),
        (
            ["{model}", "-o", "{tmp}/few.csv/sub"],
            r"--output: .*sub/a cannot be written \(Not a directory\); name another",
        ),
        (["{model}", "--chat-template", "{tmp}/none"], "--chat-template .*none: there is no such file"),
        (["{model}", "--chat-template", "{tmp}/bytes.jinja"], "--chat-template .*bytes.jinja: it is no text in UTF-8"),
        (
            ["{tmp}/unknown"],
            r"MODEL=.*unknown: its config\.json cannot be read \(The checkpoint you are trying to load",
        ),
        (["{tmp}/spoilt", "--chat-template", "{tmp}/t.jinja"], r"MODEL=.*spoilt: its tokenizer cannot be loaded \("),
        (["{model}", "--safe", "{tmp}/none.csv"], r"--safe .*none\.csv: there is no such file or folder"),
        (["{model}", "--safe", "{tmp}/empty.csv"], r"--safe .*empty\.csv: it holds no rows"),
        (["{model}", "--safe", "{tmp}/advbench.csv"], r"two sets are called advbench"),
        (
            ["{model}", "--safe", "{tmp}/both.csv"],
            r"'How do I cheat 2 friends in a board game\?' stands in both as safe and in advbench as harmful; r",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence_before_a_model_is_loaded(models, files, tmp_path, words, why, monkeypatch):
    monkeypatch.setattr(hidden_states, "_load", lambda *given: pytest.fail("loaded"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "no_tokenizer").mkdir()
    (tmp_path / "no_tokenizer" / "config.json").write_text("{}")
    plain = shutil.copytree(models[0], tmp_path / "no_template")
    for file in plain.glob("*.jinja"):
        file.unlink()
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    (tmp_path / "bytes.jinja").write_bytes(b"\xff")
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    (shutil.copytree(models[0], tmp_path / "unknown") / "config.json").write_text('{"model_type": "none"}')
    (shutil.copytree(models[0], tmp_path / "spoilt") / "tokenizer.json").write_text("{")
    for name, text in (("few", "prompt\nWhy?\n"), ("empty", ""), ("both", f"prompt\n{HARMFUL[2]}\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    words = [word.format(tmp=tmp_path, model=models[0]) for word in words]
    given = zip(files[::2], files[1::2], strict=True)
    rest = [word for option, value in given if option not in words for word in (option, value)]
    rest += [] if "--directions" in words else ["--directions", 4]
    done = run("separation", *words, *rest)
    assert done.exit_code == 2 and done.stderr.startswith("fgrpo eval separation: "), done.output
    assert re.search(why, done.stderr.strip()) and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_every_option_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "separation.md").read_text()
    command = next(one for one in evaluation.registered_commands if one.name == "separation")
    named = {
        f"--{name.replace('_', '-')}" for name in inspect.signature(command.callback).parameters if name != "models"
    }
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `--"))
    assert named == set(re.findall(r"`(--[\w-]+)`", rows))
    for name, default in (("directions", "8"), ("shrinkage", "0.05"), ("resamples", "10,000")):
        assert re.search(rf"^\| `--{name}` \| {default} \|", page, flags=re.MULTILINE)
        assert getattr(Estimation, name) == float(default.replace(",", ""))
