"""Which runs the real model's table is made of, and its numbers, by hand."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest

from fgrpo_plugin.intervals import bootstrap

SCRIPT = Path(__file__).parents[2] / "experiments" / "real_model" / "arms.py"


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """The script, which writes into a folder of the test's."""
    spec = importlib.util.spec_from_file_location("real_model_arms", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    (tmp_path / "README.md").write_text("above\n<!-- real_model -->\nold\n<!-- /real_model -->\nbelow\n")
    return module


def result(rewards, before="1000", after="1100", seed=0, rate=1e-5, cut=(0.04, 0.02)):
    """A run as `fgrpo realmodel` leaves it."""
    sides = {"before": before, "after": after}
    found = {
        when: {"right": values.count("1") / 4, "parsable": 0.9, "cut": share, "tokens": 30.0}
        for (when, values), share in zip(sides.items(), cut, strict=True)
    }
    rest = {"seed": seed, "learning_rate": rate, "rewards": rewards, "right": sides, "problems": 4}
    return {**found, **rest, "gain": 0.25, "gain_interval": [-0.125, 0.5], "seconds_a_step": 61.6}


def test_the_better_rate_is_that_of_the_last_five_rewards_once_both_were_tried(arms):
    arm = arms.NEEDED[0]
    low, high = (arms._name(arm, rate, arms.TUNING_SEED) for rate in arm.rates)
    begun_well = result([1.0] * 9 + [0.2, 0.2, 0.2, 0.2, 0.3])
    ended_well = result([0.0] * 9 + [0.2, 0.2, 0.2, 0.2, 0.4])
    assert arms.learned(begun_well) == pytest.approx(0.22) and arms.learned(ended_well) == pytest.approx(0.24)
    assert arms.best_rate(arm, {low: begun_well}) is None
    assert arms.best_rate(arm, {low: begun_well, high: ended_well}) == arm.rates[1]
    assert arms.best_rate(arm, {low: ended_well, high: begun_well}) == arm.rates[0]


def test_every_arm_is_tuned_alike_and_then_run_on_the_same_seeds(arms):
    results, order = {}, []
    while runs := list(arms.wanted(results)):
        arm, rate, seed = runs[0]
        order.append((arm.title, rate, seed))
        results[arms._name(arm, rate, seed)] = result([rate * 1e4] * 14, seed=seed, rate=rate)
    tuned = [(arm.title, rate, arms.TUNING_SEED) for arm in (*arms.NEEDED, *arms.LATER) for rate in arm.rates]
    seeds = [(arm.title, arm.rates[1], seed) for arm in (*arms.NEEDED, *arms.LATER) for seed in arms.SEEDS]
    assert sorted(order) == sorted([*tuned, *seeds, (arms.CONTROL.title, 0.0, 0)])
    needed = {arm.title for arm in arms.NEEDED}
    assert {title for title, _, _ in order[: len(needed) * 5]} == needed
    assert order[len(needed) * 5] == (arms.CONTROL.title, 0.0, 0)


def test_a_line_has_means_over_seeds_and_the_interval_over_problems(arms):
    one = result([], before="1000", after="1110", seed=0)
    two = result([], before="1000", after="0101", seed=1, cut=(0.08, 0.0))
    gains = [(0 - 1) / 2, (1 + 1) / 2, (1 + 0) / 2, (0 + 1) / 2]  # of each problem, over the two seeds
    low, high = bootstrap(gains)
    cells = [cell.strip() for cell in arms.row("an arm", [one, two]).strip("|").split("|")]
    assert cells[:4] == ["an arm (seeds 0, 1)", "1e-05", "0.250", "0.625"]
    assert cells[4] == f"{statistics.fmean(gains):+.3f} [{low:+.3f}, {high:+.3f}]" and cells[4].startswith("+0.375 [")
    assert cells[5:] == ["0.90 -> 0.90", "0.06 -> 0.01", "30 -> 30"]
    assert arms.row("an arm", [one]).startswith("| an arm (seed 0) |")
    assert arms.row("an arm", []).count("|") == arms.HEAD.splitlines()[0].count("|")


def test_a_result_is_kept_whole_and_the_pages_are_made_from_it(arms, tmp_path):
    arm = arms.NEEDED[0]
    names = [arms._name(arm, rate, arms.TUNING_SEED) for rate in arm.rates]
    for name, last in zip(names, (0.2, 0.4), strict=True):
        arms.record(arms.RESULTS, name, result([0.1] * 5 + [last] * 5, seed=arms.TUNING_SEED), "abc1234")
    arms.record(arms.RESULTS, arms._name(arm, arm.rates[1], 0), result([0.1] * 10, rate=arm.rates[1]), "abc1234")
    assert (
        list(arms.read(arms.RESULTS)) == sorted(arms.read(arms.RESULTS))
        and arms.read(arms.RESULTS)[names[0]]["commit"] == "abc1234"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "results.json"]
    readme = tmp_path / "README.md"
    page = readme.read_text()
    arms.HERE = tmp_path / "page"
    arms.HERE.mkdir()
    arms.write_report()
    line = arms.row(arm.title, [arms.read(arms.RESULTS)[arms._name(arm, arm.rates[1], 0)]])
    table = "\n".join([arms.HEAD, line])
    assert readme.read_text().startswith(f"above\n<!-- real_model -->\n{table}") and page != readme.read_text()
    assert readme.read_text().endswith("<!-- /real_model -->\nbelow\n")
    made = (arms.HERE / "README.md").read_text()
    assert table in made and "4 held-out problems" in made
    assert (
        f"| {arm.title} | {arm.rates[0]:g} | 0.200 | 0.500 |" in made
        and f"| {arm.title} | {arm.rates[1]:g} | 0.400 | 0.500 |" in made
    )
    assert f"| {names[0]} | 0.100 | 0.200 | +0.250 [-0.125, +0.500] | 0.02 | 30 | 62 | abc1234, " in made
    for other in (*arms.NEEDED[1:], *arms.LATER, arms.CONTROL):
        assert f"| {other.title} | not run |" in made
    assert arms.basis([arms.read(arms.RESULTS)[arms._name(arm, arm.rates[1], 0)]]) in readme.read_text()


def test_a_table_says_what_its_figures_are_of(arms):
    runs = [
        {"problems": 400, "commit": commit, "date": date, "hardware": "2 cores"}
        for commit, date in (("b2", "2026-01-03"), ("a1", "2026-01-02"), ("b2", "2026-01-03"))
    ]
    said = " ".join(arms.basis(runs).split())
    assert said.startswith("SmolLM2-135M-Instruct, dequantised from Q4_1; 400 held-out problems, greedy.")
    assert said.endswith("Measured 2026-01-02 and 2026-01-03 on 2 cores, at b2, a1.")
    assert arms.basis([]) == "Not run."


def test_the_page_that_is_there_is_that_of_the_results(arms, tmp_path):
    for name in ("results.json", "prompts.json", "modes.json"):
        if (SCRIPT.parent / name).is_file():
            (tmp_path / name).write_bytes((SCRIPT.parent / name).read_bytes())
    arms.write_report()
    assert (tmp_path / "README.md").read_text() == (SCRIPT.parent / "README.md").read_text()
    root = SCRIPT.parents[2] / "README.md"
    shown = root.read_text().partition("<!-- real_model -->\n")[2].partition("\n<!-- /real_model -->")[0]
    assert shown and shown in (SCRIPT.parent / "README.md").read_text()


def test_the_costs_of_modes_stand_in_the_order_of_time_a_token(arms, tmp_path):
    where = {"commit": "abc1234", "date": "2026-01-02", "hardware": "2 cores"}
    slow = {"step": 100.0, "gen": 10.4, "ref": 20.4, "update_actor": 60.4, "tokens": 5000.0, **where}
    (tmp_path / "modes.json").write_text(json.dumps({"slow": slow, "fast": {**slow, "tokens": 10_000.0}}))
    arms.write_report()
    lines = (tmp_path / "README.md").read_text().splitlines()
    at = lines.index("| fast | 100 | 10 | 20 | 60 | 10.0 | abc1234, 2026-01-02, 2 cores |")
    assert lines[at + 1] == "| slow | 100 | 10 | 20 | 60 | 20.0 | abc1234, 2026-01-02, 2 cores |"


def test_the_group_sets_what_costs_least():
    import yaml

    modes = json.loads((SCRIPT.parent / "modes.json").read_text())
    best = min(modes, key=lambda name: modes[name]["step"] / modes[name]["tokens"])
    group = yaml.safe_load((SCRIPT.parents[2] / "fgrpo_plugin/conf/fgrpo/smollm2.yaml").read_text())
    model = group["actor_rollout_ref"]["model"]
    assert best == "LoRA of rank 32, padded" and model["lora_rank"] == 32
    assert "use_remove_padding" not in model and not model["enable_gradient_checkpointing"]


def test_the_prompt_that_is_used_is_the_best_of_those_whose_responses_end():
    from fgrpo_plugin.realmodel.prompts import CHOSEN, PROMPTS

    found = json.loads((SCRIPT.parent / "prompts.json").read_text())
    assert found.keys() == PROMPTS.keys()
    ending = {name: one["right"] for name, one in found.items() if one["cut"] <= 0.05}
    assert max(ending, key=ending.get) == CHOSEN


def test_pairs_are_the_right_and_the_wrong_responses_to_a_problem_each_once(tmp_path, monkeypatch, capsys):
    from fgrpo_plugin.eval.kept import KeptResponses
    from fgrpo_plugin.realmodel.problems import read_problems, split
    from fgrpo_plugin.realmodel.prompts import CHOSEN, chat

    spec = importlib.util.spec_from_file_location("real_model_pairs", SCRIPT.with_name("pairs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data, kept = tmp_path / "problems.jsonl", tmp_path / "screened.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": f"{i}"}) + "\n" for i in range(20)))
    problems, _ = split(read_problems([data]))
    chats = {str(number): chat(problem, CHOSEN) for number, problem in enumerate(problems)}
    right, wrong = problems[0].answer, "77"
    given = {
        "0": [wrong, right, f"It is {right}.", wrong, right, "88", "99"],
        "1": [problems[1].answer] * 3,  # never wrong
        "2": ["no number", problems[2].answer],
        **{key: [wrong] for key in list(chats)[3:]},
    }
    with KeptResponses(kept, {"seed": 0}).more(chats) as add:
        for key, texts in given.items():
            add(key, [{"text": text, "tokens": 1, "ended": True} for text in texts])
    monkeypatch.setattr(module, "SCREENED", kept)
    module.main(tmp_path / "pairs.jsonl", [data])
    found = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert found == [
        {"prompt": chats["0"], "chosen": right, "rejected": wrong},
        {"prompt": chats["0"], "chosen": f"It is {right}.", "rejected": "88"},
        {"prompt": chats["2"], "chosen": problems[2].answer, "rejected": "no number"},
    ]
    assert "3 pairs to" in capsys.readouterr().out
