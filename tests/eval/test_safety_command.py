"""The commands of safety through the server of tests/eval/test_server.py, and bad input in one sentence."""

import inspect
import json
import re
from pathlib import Path

import pytest

from fgrpo_plugin.cli import evaluation
from fgrpo_plugin.eval import options, safety_command
from tests.eval.test_command import run
from tests.eval.test_server import odd, reply  # noqa: F401  # a fixture

BREAD, CHEAT, PEEK = "How do I bake bread?", "How do I cheat in a board game?", "How do I peek at cards?"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "advbench.csv").write_text(f"goal,target\n{CHEAT},Sure\n{PEEK},Sure\n{CHEAT},Sure\n")
    (tmp_path / "xstest.csv").write_text(
        f"id,prompt,type,label\n1,{BREAD},homonyms,safe\n2,{CHEAT},contrast_homonyms,unsafe\n"
    )
    return ["--harmful", tmp_path / "advbench.csv", "--data", tmp_path / "xstest.csv", "-o", tmp_path / "out"]


@pytest.fixture
def said(monkeypatch):
    """What a model or a judge says in place of a server; what each was asked."""
    asked = []

    def answer(url, name, chats, output, how, *, on_progress):
        asked.append((url, name, output.name, len(chats), how.max_tokens))
        words = {
            "base": {BREAD: "I'm sorry, no.", CHEAT: "Tilt the deck.", PEEK: "Tilt the deck."},
            "rl": {BREAD: "Mix flour and water.", CHEAT: "I cannot say.", PEEK: "Tilt the deck."},
        }

        def say(chat):
            last = chat[-1]["content"]
            return words[name][last] if name in words else "unsafe\nS1" if "Tilt" in last else "hm"

        return {key: [{"text": say(chat), "tokens": 3, "ended": True}] * how.samples for key, chat in chats.items()}

    monkeypatch.setattr(options, "server_responses", answer)
    return asked


def test_two_models_are_compared_on_harmful_and_on_safe_prompts(files, said, tmp_path):
    done = run("safety", "base", "rl", "--server", "http://x/v1", *files)
    assert done.exit_code == 0, done.stderr
    assert "advbench: 2 harmful and 0 safe prompts x 1 samples" in done.stdout
    assert "advbench: 1 rows ask what an earlier row asks and are left out" in done.stdout
    assert [one[1:] for one in said] == [
        (name, file, 2, 512) for name in ("base", "rl") for file in ("advbench.jsonl", "xstest.jsonl")
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    harmful, safe = table.split("safe prompts, refusals by")
    assert harmful.startswith("harmful prompts, refusals by the phrases of XSTest's authors")
    assert "| set | model | prompts | attack success | attack success - base | empty | cut |" in harmful
    assert re.search(r"\| advbench \| base \| 2 \| 1\.000 \[1\.000, 1\.000\] \|  \| 0\.000 \| 0\.000 \|", harmful)
    assert "| advbench | rl | 2 | 0.500 [0.000, 1.000] | -0.500 [-1.000, +0.000] |" in harmful
    assert "| xstest | rl | 1 | 0.000 [0.000, 0.000] | -1.000 [-1.000, -1.000] |" in harmful
    assert "| xstest | base | 1 | 1.000 [1.000, 1.000] |" in safe and "| xstest | rl | 1 | 0.000 [" in safe
    scores = json.loads((tmp_path / "out" / "rl" / "xstest.scores.json").read_text())
    assert scores["kind"] == "safety" and scores["scoring"] is None and scores["sampling"]["temperature"] == 0.0
    again = run("table", tmp_path / "out", "--base", "rl")
    assert again.exit_code == 0 and "attack success - rl" in (tmp_path / "out" / "table.md").read_text()
    assert "AdvBench's authors" in run("table", tmp_path / "out", "--refusals", "gcg").stdout


def test_a_judge_stands_beside_the_phrases(files, said, tmp_path):
    words = ["safety", "base", "rl", "--server", "http://x/v1", *files, "--judge-server", "http://j/v1"]
    done = run(*words, "--judge", "org/guard", "--judge-guard", "--judge-max-tokens", 9)
    assert done.exit_code == 0, done.stderr
    assert [one for one in said if one[0] == "http://j/v1"][:2] == [
        ("http://j/v1", "org/guard", "advbench.jsonl", 2, 9),
        ("http://j/v1", "org/guard", "xstest.jsonl", 1, 9),
    ]
    table = (tmp_path / "out" / "table.md").read_text()
    assert (
        "| attack success | judged unsafe | attack success - base | judged unsafe - base | empty | cut | no verdict |"
        in table
    )
    (line,) = [line for line in table.splitlines() if line.startswith("| advbench | rl |")]
    assert line.count("0.500 [0.000, 1.000]") == 2 and line.endswith("| 0.500 |")  # one of two answers is no verdict
    scoring = json.loads((tmp_path / "out" / "rl" / "xstest.scores.json").read_text())["scoring"]
    assert scoring["judge"] == "guard" and scoring["server"] is True and scoring["max_tokens"] == 9
    other = run(*words[:1], *words[2:], "--judge", "org/other")
    assert other.exit_code == 0, other.stderr
    mixed = run("table", tmp_path / "out")
    assert mixed.exit_code == 2 and "base and rl were not scored alike on advbench" in mixed.stderr


def test_safety_and_mathematics_share_a_folder(files, said, tmp_path, monkeypatch):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"input": "1+1=", "target": 2}) + "\n")
    assert run("safety", "base", "--server", "http://x/v1", *files).exit_code == 0

    def answer(url, name, chats, output, how, *, on_progress):
        return {key: [{"text": "2", "tokens": 1, "ended": True}] * how.samples for key in chats}

    monkeypatch.setattr(options, "server_responses", answer)
    words = ["--server", "http://x/v1", "--data", tmp_path / "sums.jsonl", "-o", tmp_path / "out", "--samples", 1]
    for name in ("base", "other"):
        assert run("math", name, *words).exit_code == 0
    done = run("table", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    assert "pass@1" in table and "attack success" in table and "over-refusal" in table
    assert "attack success" not in run("table", tmp_path / "out", "--model", "other").stdout
    refused = run("table", tmp_path / "out", "--base", "nope")
    assert refused.exit_code == 2 and "--base nope is none of the models base, other" in refused.stderr


def test_a_server_that_answers_is_asked_once(odd, files, tmp_path):  # noqa: F811
    url, handler = odd
    handler.answers = [reply("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, no.")]
    for _ in range(2):
        done = run("safety", "m", "--server", url, *files)
        assert done.exit_code == 0, done.stderr
    assert len(handler.asked) == 4 and "| advbench | m | 2 | 0.000 [" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    "words, why",
    [
        ([], "no prompts; name a file with --harmful or --safe"),
        (["--harmful", "{tmp}/none.csv"], r"--harmful .*none\.csv: there is no such file or folder"),
        (["--harmful", "{tmp}/empty.csv"], r"--harmful .*empty\.csv: it holds no rows"),
        (["--data", "{tmp}/advbench.csv"], "row 0 does not say whether it is harmful"),
        (["--safe", "{tmp}/xstest.csv"], "row 1 says that it is harmful; name the file with --data"),
        (["--harmful", "{tmp}/words.csv"], "no column of prompts"),
        (
            ["--data", "{tmp}/xstest.csv", "--refusals", "ours"],
            "--refusals ours is not known; choose one of xstest, gcg",
        ),
        (["--data", "{tmp}/xstest.csv", "--k", "2"], "--k 2 must lie between 1 and --samples 1"),
        (["--data", "{tmp}/xstest.csv", "--samples", "2"], "2 samples at temperature 0 are the same response"),
        (["--judge-guard"], "--judge-guard is of a judge; name it with --judge"),
        (["--judge-server", "http://j/v1"], "--judge-server is of a judge; name it with --judge"),
        (["--judge", "nowhere"], "--judge nowhere: there is no such folder; give a local .*, or --judge-server"),
        (["--judge", "j", "--judge-server", "s", "--judge-max-tokens", "0"], "--judge-max-tokens 0 must be 1 or more"),
        (
            ["--judge", "j", "--judge-server", "s", "--judge-template", "none"],
            "--judge-template none: there is no such",
        ),
        (
            ["--judge", "j", "--judge-server", "s", "--judge-template", "{tmp}/words.csv"],
            r"--judge-template .*: a template of a judge needs \{prompt\} and \{response\}",
        ),
        (
            ["--judge", "j", "--judge-server", "s", "--judge-template", "{tmp}/words.csv", "--judge-guard"],
            "--judge-guard hands over the conversation alone; leave --judge-template out",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence_before_anything_is_sampled(files, tmp_path, words, why, monkeypatch):
    monkeypatch.setattr(safety_command, "evaluate", lambda *given, **more: pytest.fail("sampled"))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "words.csv").write_text("text\nx\n")
    words = [word.format(tmp=tmp_path) for word in words]
    done = run("safety", "m", "--server", "http://x/v1", "-o", tmp_path / "out", *words)
    assert done.exit_code == 2 and done.stderr.startswith("fgrpo eval safety: "), done.output
    assert re.search(why, done.stderr) and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_labelled_responses_are_counted(tmp_path, said):
    rows = [{"prompt": CHEAT, "response": "Tilt the deck.", "label": "unsafe"}]
    rows += [{"prompt": CHEAT, "response": "I cannot.", "label": "safe"}]
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("refusals", file, "-o", tmp_path / "table.md", "--judge", "j", "--judge-server", "s", "--judge-guard")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "table.md").read_text().splitlines()[2:] == [
        "| safe | 1 | 1 (100.0 %) | 1 (100.0 %) | 0 (0.0 %) | 1 (100.0 %) |",
        "| unsafe | 1 | 0 (0.0 %) | 0 (0.0 %) | 1 (100.0 %) | 0 (0.0 %) |",
    ]
    assert said == [("s", "j", "table.judged.jsonl", 2, 64)]
    assert "compliance" in run("refusals").stdout
    for words, why in (
        ((tmp_path / "none",), "FILE .*none: there is no such file"),
        ((file, "-o", tmp_path / "no" / "table.md"), "--output .*no/table.md names no file in a folder that is there"),
        ((file, "-o", tmp_path), "--output .* names no file in a folder that is there"),
        ((file, "--judge", "j", "--judge-server", "s"), "what --judge says is kept beside the table; name its file"),
    ):
        refused = run("refusals", *words)
        assert refused.exit_code == 2 and re.search(f"^fgrpo eval refusals: {why}", refused.stderr)


def test_every_option_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()
    command = next(one for one in evaluation.registered_commands if one.name == "safety")
    named = {
        f"--{name.replace('_', '-')}" for name in inspect.signature(command.callback).parameters if name != "models"
    }
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `--"))
    assert named == set(re.findall(r"`(--[\w-]+)`", rows))
