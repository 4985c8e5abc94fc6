"""What docs/first_settings.md calls measured stands in the results' pages, and its values are those of the groups."""

import re
from pathlib import Path

import pytest
import yaml

from fgrpo_plugin.config import DEFAULT_LAM, PRESETS, FDivergenceConfig
from fgrpo_plugin.divergences import available_divergences

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first_settings.md").read_text()
GROUPS = ROOT / "fgrpo_plugin" / "conf" / "fgrpo"


def group(name: str) -> dict:
    """A recipe's settings."""
    return yaml.safe_load((GROUPS / f"{name}.yaml").read_text())


def results(name: str) -> str:
    """The page of an experiment."""
    return (ROOT / "experiments" / name / "README.md").read_text()


def tables() -> dict[str, dict[str, list[str]]]:
    """Situation -> setting -> the other cells of its row."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
        found[part.splitlines()[0]] = {row[0].strip("`"): row[1:] for row in rows}
    return found


def test_every_value_has_a_source_and_is_one_that_the_settings_take():
    found = tables()
    assert len(found) == 4
    for rows in found.values():
        for setting, (start, _, source, _) in rows.items():
            assert re.match(r"(second-hand|measured|reasoned)", source), setting
            named = start.strip("`")
            if setting in ("divergence", "preset"):
                assert named in {"divergence": available_divergences(), "preset": PRESETS}[setting]
            elif setting in ("beta", "lam"):
                assert getattr(FDivergenceConfig(**{setting: float(named)}), setting) == float(named)


def test_defaults_and_groups_have_the_values_that_are_named():
    defaults, (exact, learned, _, both) = FDivergenceConfig(), tables().values()
    assert exact["divergence"][0] == f"`{defaults.divergence}`" and exact["beta"][0] == f"{defaults.beta:g}"
    assert exact["preset"][0] == f"`{defaults.preset}`" and both["lam"][0] == f"{DEFAULT_LAM:g}"
    lora = group("math")["actor_rollout_ref"]["actor"]["optim"]["lr"]
    whole = group("rlvr")["actor_rollout_ref"]["actor"]["optim"]["lr"]
    assert [float(number) for number in re.findall(r"\de-\d", exact["optim.lr"][0])] == [lora, whole]
    assert f"({group('rlvr')['data']['train_batch_size']} prompts in `rlvr`)" in exact["ppo_mini_batch_size"][0]
    assert f"({group('safety')['data']['train_batch_size']} prompts in `safety`)" in learned["ppo_mini_batch_size"][0]
    assert int(both["n"][0]) == group("quickstart_common")["actor_rollout_ref"]["rollout"]["n"]  # the lab's too
    loss = group("laptop_hybrid")["actor_rollout_ref"]["actor"]["policy_loss"]["f_divergence"]
    assert (loss["divergence"], loss["beta"]) == ("kl", float(both["beta"][0]))


def said(*texts: str) -> None:
    """The page says each of these, wherever its lines break."""
    page = " ".join(PAGE.split())
    for text in texts:
        assert text in page, text


def test_what_is_reported_of_other_runs_is_what_assumptions_have():
    said(
        "| `beta` | 0.1 | the value of the paper's runs",
        "| 5e-6 with LoRA; 1e-6 for all weights | the paper's math runs",
    )
    said("a group of 4, as the paper has", "| 5e-5 with LoRA;", "| `data.preference.batch_size` | 32 | KLDO's runs")
    said("KLDO's runs have 5", "| `divergence` | `jensen_shannon` | of the paper's safety runs")
    assumptions = (ROOT / "docs" / "assumptions.md").read_text()
    assert "beta 0.1, 4 responses a prompt, learning rate 5e-6, LoRA" in assumptions
    assert "learning rate 5e-5, beta 0.1, 5 epochs, batches of 32" in assumptions
    assert "jensen_shannon, lambda in {0, 0.5, 1}" in assumptions


def test_the_quick_start_shows_no_difference():
    said("on the quick start's task three divergences and GRPO end alike")
    rows = re.findall(r"^\| (?:f-GRPO|GRPO).*seeds\) \|.*\| ([\d.]+) \|$", results("matrix"), flags=re.MULTILINE)
    after = [float(row) for row in rows]
    assert len(after) == 4 and max(after) - min(after) < 0.02


def test_the_real_model_shows_a_gain_of_grpo_and_none_of_pearson():
    said("GRPO gains and f-GRPO with pearson shows no gain")
    page = results("real_model").split("## Tuning")[0]

    def interval(arm: str) -> tuple[float, float]:
        low, high = re.search(rf"^\| {arm} \(seeds.*?\[([+-][\d.]+), ([+-][\d.]+)\]", page, flags=re.MULTILINE).groups()
        return float(low), float(high)

    assert interval("GRPO, no KL")[0] > 0
    low, high = interval("f-GRPO, pearson")
    assert low < 0 < high


@pytest.mark.parametrize(("preset", "won"), [("stable", [0, 5, 5]), ("paper", [0, 0, 5]), ("released", [0, 0, 5])])
def test_the_lab_has_the_seeds_that_the_page_speaks_of(preset, won):
    said("0.5 and 0.75 were above both ends on all seeds, 0.25 on none, with `preset=stable`")
    said("with `paper` and `released` 0.5 is another balance: there 0.75 alone won")
    line = next(
        line for line in results("lambda_lab").splitlines() if line.startswith(f"| {preset} | ") and "±" not in line
    )
    assert [int(cell) for cell in line.strip("|").split("|")[1:]] == won


def test_lambda_zero_is_exploited_and_lambda_one_is_better_sampled_than_greedy():
    said("exploited with lambda 0 on all of its seeds (measured)")
    said("Measured with lambda 1 on the lab's task: sampled responses became better and greedy ones worse.")
    page = results("lambda_lab")
    found = {}
    for name in ("before training", "lambda 0", "lambda 1"):
        row = re.search(rf"^\| {name} \|(.*)\|$", page, flags=re.MULTILINE)[1]
        found[name] = [float(cell.split("±")[0]) for cell in row.split("|")]
    proxy, true, greedy = 0, 1, 4
    before = found["before training"]
    assert found["lambda 0"][proxy] > before[proxy] and found["lambda 0"][true] < before[true]
    assert found["lambda 1"][true] > before[true] and found["lambda 1"][greedy] < before[greedy]


def test_on_a_real_model_a_half_is_above_the_reward_alone():
    said("[on a real model](../experiments/real_hybrid/README.md) 0.5 was above lambda 0")
    page = results("real_hybrid").split("## Tuning")[0]
    gains = {
        lam: [
            float(number)
            for number in re.search(
                rf"^\| f-HAL, lambda {lam}\b[^|]*\(seeds 0, 1, 2\).*?\[(.*?), (.*?)\]", page, flags=re.MULTILINE
            ).groups()
        ]
        for lam in ("0", "0.5")
    }
    assert gains["0.5"][0] > gains["0"][1]  # the intervals do not meet
