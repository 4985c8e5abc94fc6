"""What `fgrpo prefs check --model` prints of the reference's ranking: each number against a loop."""

import re
import statistics

import pytest
import torch
from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.intervals import Measure, share_interval
from fgrpo_plugin.preference import reference_ranking
from fgrpo_plugin.preference.ranking import Ranked
from fgrpo_plugin.preference.ranking_report import against_chance, conclusions, report_ranking
from fgrpo_plugin.preference.reference_ranking import Asked
from fgrpo_plugin.preference.tokens import TokenRow
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model
from fgrpo_plugin.terminal import Terminal
from tests.preference.conftest import lines
from tests.preference.test_model_log_probs import one_at_a_time
from tests.preference.test_reference_ranking import PAIRS, WIDE, fill, tokens


@pytest.fixture(autouse=True)
def no_default_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(reference_ranking, "DEFAULT_FOLDER", tmp_path / "default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(build_model(build_tokenizer(), 0), build_tokenizer(), tmp_path_factory.mktemp("m") / "model")


SWAPPED = [  # a short response is the likelier one: of some pairs the rejected one
    {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} if i % 3 == 1 else pair
    for i, pair in enumerate(PAIRS)
]


def words(text):
    return " ".join(text.replace("│", " ").split())


def printed(rows, asked, settings=WIDE):
    """(what is printed, what progress is told)."""
    consoles = [Terminal(record=True, width=300, file=open("/dev/null", "w")) for _ in range(2)]  # noqa: SIM115
    report_ranking(rows, settings, asked, *consoles)
    return [words(console.export_text()) for console in consoles]


def row(rows, name):
    """(right, of, share, low, high) of a row of the table."""
    (found,) = re.findall(rf"{re.escape(name)} (\d+) of (\d+) ([\d.]+) ([\d.]+) to ([\d.]+)", rows)
    return [float(number) for number in found]


def test_the_table_has_shares_and_intervals_of_a_loop(folder, tmp_path):
    rows = tokens(tmp_path / "a.jsonl", SWAPPED)
    text, progress = printed(rows, Asked(folder, 100))
    model = build_model(build_tokenizer(), 0).eval()
    right, by_token, longer, wrong = [], [], [], []
    for plus, minus in zip(*[iter(rows)] * 2, strict=True):
        one, other = one_at_a_time(model, plus), one_at_a_time(model, minus)
        right.append(float(sum(one) >= sum(other)))
        by_token.append(float(sum(one) / len(one) >= sum(other) / len(other)))
        longer.append(len(one) > len(other))
        wrong += [sum(other) - sum(one)] if sum(one) < sum(other) else []
    assert "pairs that the reference ranks rightly, 9 of 9" in text
    assert re.search(r"right\W+share\W+95 %", text)
    for name, values in (("log pi(chosen) >= log pi(rejected)", right), ("the same of log pi / tokens", by_token)):
        count, of, share, low, high = row(text, name)
        assert (count, of) == (sum(values), 9) and share == pytest.approx(sum(values) / 9, abs=6e-4)
        assert (low, high) == pytest.approx(share_interval(int(sum(values)), 9), abs=6e-4) and low < share < high
    assert len(wrong) > 2 and right != by_token and sum(right) != sum(by_token)
    assert f"already ranks {sum(right) / 9:.0%} of the pairs rightly (not told from chance)" in text
    assert f"by the mean over tokens {sum(by_token) / 9:.0%} (" in text
    assert f"is the longer one in {sum(longer) / 9:.0%} of the pairs" in text
    assert f"half of the {len(wrong)} wrong pairs are wrong by {statistics.median(wrong):.1f} nats or more" in text
    assert "9 pairs computed in float32 on the CPU" in text and "were drawn with --seed" not in text
    assert "0 s responses by the reference: 0 of 18" in progress and "responses by the reference: 18 of 18" in progress


def test_the_interval_is_of_the_pairs_that_are_shown(folder, tmp_path):
    rows = tokens(tmp_path / "a.jsonl", PAIRS)
    made = fill(folder, tmp_path / "cache", rows, -1.0)  # a response is as likely as it is short, each token as another
    asked = Asked(folder, 5, seed=3, cache_dir=str(tmp_path / "cache"))
    text, _ = printed(rows, asked)
    shorter = [rows[i].response_length <= rows[i + 1].response_length for i in range(0, 18, 2)]
    assert row(text, "log pi(chosen) >= log pi(rejected)")[:2] == [sum(shorter), 9]
    assert row(text, "the same of log pi / tokens") == [9, 9, 1, 0.664, 1]
    assert f"cache {made.folder} has 9 pairs" in text and "by the mean over tokens 100% (better than chance)" in text
    text, _ = printed(rows, Asked(folder, 5, seed=3))
    assert "ranks rightly, 5 of 9" in text and "the 5 pairs were drawn with --seed 3" in text


def test_what_is_skipped_is_said_in_place_of_a_table(folder, tmp_path):
    rows = [TokenRow(r.prompt_ids, r.response_ids, r.desirable, None, "") for r in tokens(tmp_path / "a.jsonl", PAIRS)]
    text, progress = printed(rows, Asked(folder, 5))
    assert text == "ranking accuracy of the reference: skipped: there are no pairs of a D+ and a D- row"
    assert progress == ""


def test_one_pair_shows_nothing(folder, tmp_path):
    rows = tokens(tmp_path / "a.jsonl", PAIRS[:1])
    fill(folder, tmp_path / "cache", rows, -1.0)
    text, _ = printed(rows, Asked(folder, 1, cache_dir=str(tmp_path / "cache")))
    assert row(text, "log pi(chosen) >= log pi(rejected)") == [1, 1, 1, 0.025, 1]
    assert "ranks 100% of the pairs rightly (not told from chance)" in text


def measured(right):
    return Measure.of_share([float(value) for value in right])


def test_conclusions_of_given_leads():
    lead = torch.tensor([3.0, 0.0, -1.0, -2.0, -7.0])
    by_token = torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0])
    found = Ranked(lead, by_token, torch.tensor([True, False, False, False, False]))
    first, second, third, fourth = conclusions(found, measured(found.right), measured(found.right_per_token))
    assert "already ranks 40% of the pairs rightly" in first and "tokens 80% (" in first and "in 20% of the" in second
    assert "half of the 3 wrong pairs are wrong by 2.0 nats or more" in third and "arXiv 2405.19534" in fourth
    right = Ranked(lead[:2], by_token[1:3], torch.tensor([True, True]))
    assert len(conclusions(right, measured(right.right), measured(right.right_per_token))) == 2


@pytest.mark.parametrize(
    "low, high, said",
    [
        (0.51, 0.9, "better than chance"),
        (0.5, 0.9, "not told from chance"),
        (0.1, 0.5, "not told from chance"),
        (0.1, 0.49, "worse than chance"),
    ],
)
def test_chance_is_what_an_interval_includes(low, high, said):
    assert against_chance(Measure((low + high) / 2, low, high, ())) == said


def check(file, *options):
    return CliRunner().invoke(app, ["prefs", "check", str(file), *map(str, options)], env={"COLUMNS": "200"})


def test_the_command_prints_them_last_and_progress_on_the_error_output(folder, tmp_path):
    file = lines(tmp_path / "a.jsonl", PAIRS)
    result = check(file, "--model", folder, "--ranking-pairs", 4, "--seed", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.index("random rows") < result.stdout.index("pairs that the reference ranks rightly, 4 of 9")
    assert "the 4 pairs were drawn with --seed 2" in result.stdout and "responses by" not in result.stdout
    assert "responses by the reference: 8 of 8" in result.stderr
    cache = fill(folder, tmp_path / "cache", tokens(tmp_path / "b.jsonl", PAIRS))
    result = check(file, "--model", folder, "--ranking-pairs", 4, "--cache-dir", tmp_path / "cache")
    assert "ranks rightly, 9 of 9" in result.stdout and result.stderr == ""
    assert f"cache{cache.folder}has9pairs" in "".join(result.stdout.split())


def test_the_command_takes_the_runs_lengths(folder, tmp_path):
    file = lines(tmp_path / "a.jsonl", [*PAIRS, {"prompt": "1", "chosen": "a" * 30, "rejected": "b"}])
    given = ("--model", folder, "--max-response-length", 8, "--ranking-pairs", 20)
    for how, of in (("error", 9), ("drop", 9), ("truncate", 10)):
        result = check(file, *given, "--on-too-long", how)
        assert f"ranks rightly, {of} of {of}" in result.stdout, how
        assert ("1 pairs are left out: too long for the run" in result.stdout) == (of == 9)
    result = check(file, *given, "--on-too-long", "cut")
    assert result.exit_code == 2 and "--on-too-long='cut' must be one of error, drop, truncate" in result.stderr


def test_the_command_without_pairs_to_rank_a_tokenizer_alone_or_less_than_none(folder, tmp_path):
    file = lines(tmp_path / "a.jsonl", PAIRS)
    none = check(file, "--model", folder, "--ranking-pairs", 0)
    assert none.exit_code == 0 and "the reference" not in none.output and "lengths in tokens" in none.stdout
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    alone = check(file, "--model", tmp_path / "tokenizer")
    assert alone.exit_code == 0 and "lengths in tokens" in alone.stdout and alone.stderr == ""
    assert "ranking accuracy of the reference: skipped:" in alone.stdout
    assert "holds a tokenizer and no weights" in alone.stdout
    assert check(file, "--model", folder, "--ranking-pairs", -1).exit_code == 2


def test_what_a_run_would_refuse_still_ends_with_1(folder, tmp_path):
    bad = {"prompt": "p", "chosen": "same", "rejected": "same"}
    result = check(lines(tmp_path / "a.jsonl", [*PAIRS, bad]), "--model", folder, "--ranking-pairs", 2)
    assert result.exit_code == 1 and "ranks rightly, 2 of 9" in result.stdout


@pytest.mark.parametrize(
    "words, why",
    [
        (["--on-too-long", "drop"], "--on-too-long is of a model; name it with --model"),
        (["--ranking-pairs", 0], "--ranking-pairs is of a model; name it with --model"),
        (["--max-prompt-length", 0], "Invalid value for '--max-prompt-length'"),
        (["--model", "{folder}", "--max-response-length", 0], "Invalid value for '--max-response-length'"),
        (["--model", "{folder}", "--template", "x=["], "--template x=[: the value is no YAML; put text into quotes"),
    ],
)
def test_options_that_would_be_ignored_or_mean_nothing_are_refused(folder, tmp_path, words, why):
    words = [str(word).format(folder=folder) for word in words]
    result = check(lines(tmp_path / "a.jsonl", PAIRS), *words)
    assert result.exit_code == 2 and why in result.stderr and "Traceback" not in result.output
