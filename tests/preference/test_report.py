"""What `fgrpo prefs check` says about data, counted by hand."""

import copy

from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.preference.files import read_preferences
from fgrpo_plugin.preference.loading import RowSettings
from fgrpo_plugin.preference.report import Measured, print_report
from fgrpo_plugin.quickstart.model import build_tokenizer
from fgrpo_plugin.terminal import Terminal
from tests.preference.conftest import lines

PAIRS = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(5)]
BAD = {"prompt": "p", "chosen": "same", "rejected": "same"}


def report(file, *, tokenizer=None, template=None, limits=(1000, 1000), **settings):
    """What was read, and the words that are printed of it."""
    found = read_preferences(file, on_bad_row="skip")
    console = Terminal(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    if tokenizer is not None:
        settings["measured"] = Measured.of(tokenizer, RowSettings(*limits, template or {}))
    print_report(found, console, **settings)
    return found, " ".join(console.export_text().replace("│", " ").split())


def test_report_counts_by_hand(tmp_path):
    rows = [*PAIRS, PAIRS[0], {**PAIRS[1], "chosen": PAIRS[1]["rejected"], "rejected": PAIRS[1]["chosen"]}, BAD]
    _, text = report(lines(tmp_path / "a.jsonl", rows), tokenizer=build_tokenizer())
    for words in (
        "format paired",
        "examples 8",
        "examples that cannot be used 1",
        "rows 14",
        "desirable (D+) 7",
        "undesirable (D-) 7",
        "pairs 7",
        "different prompts 5",
        "duplicate rows 2",
        "responses both desirable and undesirable 2",
        "lengths in tokens",
        "cannot be used: 1 x chosen and rejected are the same",
    ):
        assert words in text, words
    assert text.count(" D+ ") + text.count(" D- ") == 10


def test_lengths_without_a_tokenizer_are_characters(tmp_path):
    rows = [{"prompt": "p" * n, "completion": "r" * (2 * n), "label": n > 1} for n in (1, *range(2, 22))]
    _, text = report(lines(tmp_path / "a.jsonl", rows))
    assert "lengths in characters" in text
    assert "prompt 11 20 21" in text  # of 1 to 21: median, the 20th, the longest
    assert "desirable response 23 42 42" in text  # of 4, 6, ... 42, twenty of them
    assert "undesirable response 2 2 2" in text
    assert "template:" not in text


def test_lengths_with_a_tokenizer_are_those_of_its_template_and_end(tmp_path):
    tokenizer = build_tokenizer()
    _, text = report(
        lines(tmp_path / "a.jsonl", [{"prompt": "1+1=", "chosen": "22", "rejected": "3"}]), tokenizer=tokenizer
    )
    messages = [{"role": "user", "content": "1+1="}]
    prompt = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
    chosen, rejected = (len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in ("22", "3"))
    assert f" prompt {prompt} {prompt} {prompt}" in text
    assert f" desirable response {chosen} {chosen} {chosen}" in text
    assert f" undesirable response {rejected} {rejected} {rejected}" in text


def test_what_the_template_refuses_or_changes_is_counted(tmp_path):
    odd = copy.deepcopy(build_tokenizer())
    odd.chat_template = (
        "{% for m in messages %}{% if m['content'] == '0+1=' %}{{ raise_exception('no zero') }}{% endif %}"
        "{{ m['content'] + 'X' }}{% endfor %}"
    )
    found, text = report(lines(tmp_path / "a.jsonl", PAIRS), tokenizer=odd)
    reason = "the chat template cannot render the prompt (no zero)"
    assert found.skipped == {reason: 2} and found.first_skipped[reason].endswith("a.jsonl: row 0")
    assert "rows 8" in text and f"cannot be used: 2 x {reason}" in text
    assert "does not end a response with the token that rows end with: 8 of 8 rows" in text


def test_the_rows_that_are_shown_follow_from_the_seed_and_are_cut(tmp_path):
    rows = [{"prompt": f"q{i}" + "p" * 300, "completion": f"a{i}" + "r" * 300, "label": i % 2} for i in range(40)]
    file = lines(tmp_path / "a.jsonl", rows)
    first, again, other = (report(file, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again != other
    assert first.count(" D+ ") + first.count(" D- ") == 10
    assert first.count("p") < 10 * 201 + 200 and first.count("r") < 10 * 200 + 200


def test_brackets_of_users_are_shown_as_they_are(tmp_path):
    prompt, answer = "x [/bold] :smile: [bold]", "a[b] = [i for i in x]"
    rows = [{"prompt": prompt, "chosen": answer, "rejected": "[red]", "system": "[s]", "[odd]": 1}]
    result = CliRunner().invoke(app, ["prefs", "check", lines(tmp_path / "a.jsonl", rows)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for words in (prompt, answer, "[red]", "not read: [odd]"):
        assert words in result.output


def test_one_side_alone_and_turns_in_a_prompt_are_said(tmp_path):
    prompt = "Go on.\n\nHuman: hi\n\nAssistant: ho\n\nHuman: what?"
    rows = [{"prompt": prompt, "completion": "ho", "label": True}]
    result = CliRunner().invoke(app, ["prefs", "check", lines(tmp_path / "a.jsonl", rows)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert (
        "desirable or undesirable rows alone" in result.output
        and "one message of the user to the template: 1 rows" in result.output
    )


def test_text_in_a_chat_template_is_named_without_and_with_a_model(tmp_path):
    rows = [*PAIRS, {"prompt": "[INST] hi [/INST]", "chosen": "a", "rejected": "b"}]
    file = lines(tmp_path / "a.jsonl", rows)
    for settings in ({}, {"tokenizer": build_tokenizer()}):
        _, text = report(file, **settings)
        assert CliRunner().invoke(app, ["prefs", "check", file]).exit_code == 1  # a run refuses them
        assert "templated: 2 of 12 rows hold marks" in text and "row 5: '[INST]'" in text
    own = [{"prompt": "p", "chosen": "a<|reserved_4|>", "rejected": "b"}]
    file = lines(tmp_path / "b.jsonl", own)
    assert "templated" not in report(file)[1]
    assert "templated: 1 of 2 rows" in report(file, tokenizer=build_tokenizer())[1]


def test_the_runs_lengths_and_template_are_taken(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"prompt": "p" * 40, "chosen": "a" * 30, "rejected": "b"}, PAIRS[0]])
    _, text = report(file, tokenizer=build_tokenizer(), limits=(20, 10))
    assert "too long: 2 of 4 rows have a prompt of more than 20 tokens" in text
    assert "too long: 1 of 4 rows have a response of more than 10 tokens" in text
    assert "too long" not in report(file, tokenizer=build_tokenizer())[1]
    odd = copy.deepcopy(build_tokenizer())
    odd.chat_template = odd.chat_template + "{% if loud %}!{% endif %}"
    assert "template:" not in report(file, tokenizer=odd)[1]
    loud = report(file, tokenizer=odd, template={"loud": True})[1]
    assert "the template renders the prompt otherwise where a response follows: 4 of 4 rows" in loud


def test_the_command_takes_the_runs_lengths_template_and_stop_tokens(tmp_path):
    from fgrpo_plugin.quickstart.model import build_model, save_model

    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.eos_token = "<|reserved_4|>"
    tokenizer.chat_template = tokenizer.chat_template + "{% if not enable_thinking | default(true) %}?{% endif %}"
    save_model(build_model(build_tokenizer(), 0), tokenizer, tmp_path / "model")
    command = ["prefs", "check", lines(tmp_path / "a.jsonl", PAIRS), "--model", str(tmp_path / "model")]
    options = ["--max-prompt-length", "3", "--max-response-length", "1", "--template", "enable_thinking=false"]
    result = CliRunner().invoke(app, [*command, *options], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    for words in (
        "10 of 10 rows have a prompt of more than 3",
        "10 of 10 rows have a response of more than 1",
        "renders the prompt otherwise where a response follows: 10 of 10",
    ):
        assert words in result.output, words
    assert "otherwise" not in CliRunner().invoke(app, command, env={"COLUMNS": "300"}).output


def test_pairs_without_a_preference_are_counted(tmp_path):
    rows = [{"prompt": "p", "response_0": "a", "response_1": "b", "preference": value} for value in (0, 1, "tie")]
    found, text = report(lines(tmp_path / "a.jsonl", rows))
    assert found.ties == 1 and "pairs without a preference, left out 1" in text
