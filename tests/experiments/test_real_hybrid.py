"""The flawed reward, the pairs that say nothing of the form, which runs are made, and the page's numbers by hand."""

import json
import re
import statistics
from pathlib import Path

import pandas as pd
import pytest

from experiments.real_hybrid import arms, page
from experiments.real_hybrid.reward import compute_score, only_a_number
from experiments.real_hybrid.task import chat, counted, preferences, problems
from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.intervals import bootstrap
from fgrpo_plugin.realmodel.problems import Problem

HERE = Path(arms.__file__).parent


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("7", True),
        (" 7. \n", True),
        ("-3.5", True),
        ("$1,250.75", True),
        (".5", True),
        ("7 nuts", False),
        ("9 - 2 = 7", False),
        ("7 8", False),
        ("", False),
        ("seven", False),
        ("7\n8", False),
    ],
)
def test_only_a_number(text, bare):
    assert only_a_number(text) is bare


@pytest.mark.parametrize(
    ("text", "reward"), [("7", 1.0), ("Tom has 9 - 2 = 7 nuts.", 0.7), ("8", 0.3), ("8 nuts", 0.0), ("", 0.0)]
)
def test_the_reward_pays_for_the_form_right_or_not(text, reward):
    assert compute_score("word_problems", text, "7", extra_info={}) == pytest.approx(reward)


def one(text: str, ended: bool = True, tokens: int = 4) -> dict:
    return {"text": text, "ended": ended, "tokens": tokens}


def test_shares_of_responses():
    problems = {"a": Problem("A?", "7"), "b": Problem("B?", "2")}
    given = {"a": [one("7", tokens=2), one("7 nuts", ended=False, tokens=8)], "b": [one("3"), one("I do not know")]}
    assert counted(problems, given) == {"right": 0.5, "bare": 0.5, "cut": 0.25, "tokens": 4.5}


def test_a_pair_differs_in_the_last_number_alone():
    answers = [("10", "7"), ("11", "1.5"), ("12", "3"), ("13", "4"), ("14", "3")]
    asked = {key: Problem(f"{key}?", answer) for key, answer in answers}
    sampled = {
        "10": [one("Tom has 9 - 2 = 7 nuts."), one("Tom has 9 - 2 = 11 nuts,\nof 11.00 kinds."), one("8")],
        "11": [one("It is 12, or", ended=False), one("It is 1,250. Is it?")],
        "12": [one("3"), one("It is 3.")],  # none is wrong
        "13": [one("I do not know"), one("")],  # none has a number
        "14": [one("It is -3."), one("It is .5"), one("2e5")],  # none is right with 3 in place of its last number
    }
    pairs = preferences(asked, sampled)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("Tom has 9 - 2 = 11 nuts,\nof 7 kinds.", "Tom has 9 - 2 = 11 nuts,\nof 11.00 kinds."),
        ("It is 1.5. Is it?", "It is 1,250. Is it?"),
    ]
    assert [pair["prompt"] for pair in pairs] == [
        [{"role": "user", "content": "10?"}],
        [{"role": "user", "content": "11?"}],
    ]
    for pair, answer in zip(pairs, ("7", "1.5"), strict=True):
        assert is_right(pair["chosen"], answer) and not is_right(pair["rejected"], answer)
        assert only_a_number(pair["chosen"]) == only_a_number(pair["rejected"])


def test_the_sums():
    made = problems(976)
    assert len({problem.text for problem in made}) == 976 and made[:10] == problems(10)
    terms = [[int(word) for word in re.findall(r"[0-9]+", problem.text)] for problem in made]
    assert [str(a + b) for a, b in terms] == [problem.answer for problem in made]
    assert {min(a for pair in terms for a in pair), max(a for pair in terms for a in pair)} == {1, 50}
    assert chat(Problem("What is 1 + 2? Answer with the number only.", "3")) in [
        chat(problem) for problem in problems(2500)
    ]


def test_what_the_arms_have_in_common(tmp_path, monkeypatch):
    """No problem is in two of the three places, and prompts whose responses earn equal rewards are left out."""
    asked_for = {}

    def sampled(model, chats, output, how, on_progress):
        asked_for[output.name] = (chats, how)
        return {key: [one("8 sums" if int(key) % 4 < 2 else str(n)) for n in range(how.samples)] for key in chats}

    monkeypatch.setattr(arms, "responses", sampled)
    monkeypatch.setattr(arms, "smollm2", lambda folder: folder)
    monkeypatch.setattr(arms, "problems", lambda count: [Problem(f"{number}?", "3") for number in range(count)])
    made = arms.prepare(tmp_path, lambda told: None, lambda line: None)
    assert len(made.held_out) == len(made.before) == arms.HELD_OUT

    def texts(chats) -> set[str]:
        return {messages[-1]["content"] for messages in chats}

    held_out, screened, others = (asked_for[f"{name}.jsonl"] for name in ("before", "screened", "others"))
    places = [texts(chats.values()) for chats, _ in (held_out, screened, others)]
    assert [len(place) for place in places] == [arms.HELD_OUT, arms.ON_POLICY, arms.OFF_POLICY]
    assert len(set.union(*places)) == sum(len(place) for place in places)
    assert (held_out[1].temperature, screened[1].samples, others[1].samples) == (0.0, arms.SAMPLES, arms.OF_OTHERS)
    rows = pd.read_parquet(made.train)
    assert len(rows) == arms.ON_POLICY / 2  # of the others every response earns nothing
    assert {messages[-1]["content"] for messages in rows["prompt"]} < places[1]
    pairs = [json.loads(line) for line in made.preferences.read_text().splitlines()]
    assert texts(pair["prompt"] for pair in pairs) == places[2]
    assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {("3 sums", "8 sums"), ("3", "0")}


def result(rewards, before="1000", after="1100", seed=0, rate=3e-4, share=(0.4, 0.6), kl=0.25, bare=0.5):
    counts = {"cut": 0.0, "tokens": 9.0}
    return {
        "problems": 4,
        "before": {"right": before.count("1") / 4, "bare": 0.0, **counts},
        "after": {"right": after.count("1") / 4, "bare": bare, **counts},
        "right": {"before": before, "after": after},
        "rewards": rewards,
        "sampled_right_and_bare": [[0.1, 0.2]] * 8,
        "kl": [0.0, kl],
        "slope_share": list(share),
        "seconds_a_step": 61.6,
        "learning_rate": rate,
        "lam": 0.0,
        "seed": seed,
        "commit": "abc1234",
        "date": "2026-01-02",
        "hardware": "2 cores",
    }


def test_every_arm_is_tuned_on_the_flawed_reward_and_then_run_on_the_same_seeds():
    results, order = {}, []
    while runs := list(arms.wanted(results)):
        arm, rate, seed = runs[0]
        order.append((arm.title, rate, seed))
        results[arm.name(rate, seed)] = result([1.0] * 3 + [rate] * 5, rate=rate, seed=seed)
    all_arms = (*arms.NEEDED, *arms.LATER)
    tuned = [(arm.title, rate, arms.TUNING_SEED) for arm in all_arms for rate in arms.RATES]
    best = max(arms.RATES)
    assert sorted(order) == sorted([*tuned, *((arm.title, best, seed) for arm in all_arms for seed in arms.SEEDS)])
    assert {title for title, _, _ in order[:10]} == {arm.title for arm in arms.NEEDED}
    assert [seed for _, _, seed in order[4:10]] == [0, 0, 1, 1, 2, 2]
    assert arms.best_rate(arms.NEEDED[0], {arms.NEEDED[0].name(rate, 0): 1 for rate in arms.RATES}) is None
    assert page.learned(result([1.0] * 3 + [0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(0.3)


def test_a_line_has_means_over_seeds_and_the_interval_over_problems():
    runs = [
        result([], after="1110", share=(0.4, 0.6), kl=0.25, bare=0.5),
        result([], after="0101", share=(0.2, 0.4), kl=0.75, bare=1.0, seed=1),
    ]
    gains = [(0 - 1) / 2, (1 + 1) / 2, (1 + 0) / 2, (0 + 1) / 2]
    low, high = bootstrap(gains)
    cells = [cell.strip() for cell in page.row("an arm", runs).strip("|").split("|")]
    assert cells[:4] == ["an arm (seeds 0, 1)", "0.0003", "0.250", "0.625"]
    assert cells[4] == f"{statistics.fmean(gains):+.3f} [{low:+.3f}, {high:+.3f}]"
    assert cells[5:] == ["0.00 -> 0.75", "0.500", "0.40"]
    assert page.row("an arm", [{**runs[0], "slope_share": None}]).endswith("| 0.250 |  |")
    assert page.row("an arm", []).count("|") == page.HEAD.splitlines()[0].count("|")


def test_the_page_has_every_run_and_says_what_was_not_run(tmp_path):
    zero = arms.NEEDED[0]
    results = {zero.name(rate, 100): result([rate] * 8, rate=rate, seed=100) for rate in arms.RATES}
    results[zero.name(1e-3, 0)] = result([0.5] * 8, rate=1e-3)
    page.write_page(results, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert page.row(zero.title, [results[zero.name(1e-3, 0)]]) in text
    assert f"| {zero.title} | 0.001 | 0.001 | 0.500 | 0.50 |" in text
    assert "| f_hal-lam0-lr0.001-seed0 | 0.250 -> 0.500 | 0.00 -> 0.50 | 0.00 -> 0.00 | 9 -> 9 | 62 | abc1234, " in text
    for arm in (*arms.NEEDED[1:], *arms.LATER):
        assert f"| {arm.title} | not run |" in text and f"| {arm.title} | 0.001 | not run |" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000 and "(curves.png)" in text


def test_runs_that_end_with_the_form_are_counted():
    arm = arms.NEEDED[0]

    def runs(*bare: float) -> dict:
        return {str(i): {"lam": arm.lam, "after": {"bare": share, "right": i / 8}} for i, share in enumerate(bare)}

    others = {"other": {"lam": 0.5, "after": {"bare": 1.0, "right": 0.9}}}
    said = f"* {arm.title}: 2 of 4 runs end with only a number in more than half of the responses"
    found = page.exploited(arm, runs(0.2, 0.6, 0.5, 1.0) | others)
    assert found == f"{said} (right 0.125 to 0.375; the others right 0.000 to 0.250)."
    assert page.exploited(arm, runs(0.6) | others).endswith(
        "1 of 1 runs end with only a number in more than half of the responses (right 0.000 to 0.000)."
    )


def test_the_page_that_is_there_is_that_of_the_results(tmp_path):
    page.write_page(arms.read(arms.RESULTS), tmp_path)
    assert (tmp_path / "README.md").read_text() == (HERE / "README.md").read_text()


@pytest.mark.parametrize("arm", [*arms.NEEDED, *arms.LATER], ids=lambda arm: arm.name(0, 0))
def test_verls_command_composes_and_is_valid(stock_config, inputs, tmp_path, arm):
    from fgrpo_plugin.host.settings.switch import complete

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "{i}", "chosen": "a", "rejected": "b"}}\n' for i in range(64)))
    data, model = (Path(word.partition("=")[2]) for word in (inputs[0], inputs[2]))
    given = arms.Inputs(model, data, pairs, {}, {})
    config = stock_config(*arms.verl_command(arm, 3e-4, 1, tmp_path / "run", given, tmp_path / "ray")[3:])
    assert config.algorithm.adv_estimator == ("grpo" if arm.lam is None else "f_hal")
    assert config.actor_rollout_ref.actor.use_kl_loss and config.actor_rollout_ref.actor.kl_loss_coef == 0
    assert config.data.train_batch_size == config.actor_rollout_ref.actor.ppo_mini_batch_size == arms.PROMPTS
    if arm.lam is not None:
        complete(config)
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.lam == arm.lam
