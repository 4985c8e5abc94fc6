"""The lab's loop: reproducible, each half alone at the ends of lambda, and its gradient that of a loop written here."""

import json
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import lab
import loop
import numpy as np
import pytest
import report
import torch
import typer
from typer.testing import CliRunner

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.quickstart import hybrid, task
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer

SETTINGS = loop.Settings(divergence="pearson", steps=3, warmup_steps=0, prompts=4, group=4, preference_pairs=4)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def exploding() -> Iterator:
    raise AssertionError("this half must not be touched")
    yield


def scored(policy, tokenizer, seed: int) -> Iterator[loop.Rollouts]:
    """Rollouts of an untrained model, which never adds up, with a reward that differs between them."""
    for batch in loop.rollouts(policy, tokenizer, SETTINGS, seed):
        yield replace(batch, rewards=(batch.responses[:, 0] % 3).float())


def weights_after(tokenizer, lam: float, seed: int = 0, *, on_policy=None, preference=None) -> torch.Tensor:
    policy, reference = (build_model(tokenizer, 0).eval() for _ in range(2))
    on_policy = on_policy or scored(policy, tokenizer, seed)
    preference = preference or loop.preferences(tokenizer, SETTINGS, seed)
    loop.train(policy, reference, SETTINGS, lam, on_policy, preference)
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_a_run_depends_on_its_seed_alone(tokenizer, lam):
    first = weights_after(tokenizer, lam)
    torch.manual_seed(99)
    assert torch.equal(first, weights_after(tokenizer, lam))
    assert not torch.equal(first, weights_after(tokenizer, lam, seed=1))


def test_at_the_ends_of_lambda_the_other_half_is_not_touched(tokenizer):
    alone = weights_after(tokenizer, 0.0, preference=exploding())
    assert torch.equal(alone, weights_after(tokenizer, 0.0))
    alone = weights_after(tokenizer, 1.0, on_policy=exploding())
    assert torch.equal(alone, weights_after(tokenizer, 1.0))
    for half in ("on_policy", "preference"):
        with pytest.raises(AssertionError, match="must not be touched"):
            weights_after(tokenizer, 0.5, **{half: exploding()})


def test_rollouts_are_judged_and_end_where_the_answer_ends(tokenizer):
    policy = build_model(tokenizer, 0).eval()
    pairs = [task.Pair(12, 34), task.Pair(90, 90)]
    state = torch.get_rng_state()
    batch = loop.respond(policy, tokenizer, pairs, 50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert batch.prompts.shape == (100, loop.PROMPT_LENGTH) and batch.groups.tolist() == [0] * 50 + [1] * 50
    assert tokenizer.decode(batch.prompts[-1]) == "<|im_start|>90+90="
    for row in range(100):
        tokens = batch.responses[row].tolist()
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
        assert batch.mask[row].tolist() == [place <= end for place in range(len(tokens))]
        judged = hybrid.proxy_reward(task.DATA_SOURCE, batch.texts[row], pairs[row // 50].answer)
        assert batch.rewards[row] == pytest.approx(judged["score"])
        assert batch.true_rewards[row] == judged["true_reward"]


def test_preference_batches_hold_whole_pairs_and_come_round(tokenizer):
    rows = hybrid.preference_rows()
    settings = replace(SETTINGS, preference_pairs=len(rows) // 2)
    batch = next(loop.preferences(tokenizer, settings, seed=0))
    told = {
        (tokenizer.decode(prompt), tokenizer.decode(response[mask.bool()]), bool(desirable))
        for prompt, response, mask, desirable in zip(
            batch.prompts, batch.responses, batch.mask, batch.desirable, strict=True
        )
    }
    assert told == {(f"<|im_start|>{row.prompt[0][1]}", f"{row.response}<|im_end|>", row.desirable) for row in rows}
    few = next(loop.preferences(tokenizer, SETTINGS, seed=0))
    assert few.desirable.tolist() == [True, False] * SETTINGS.preference_pairs
    assert torch.equal(few.prompts[::2], few.prompts[1::2])


@pytest.mark.parametrize(
    ("lam", "preset", "scale"),
    [(0.0, "stable", None), (0.3, "stable", "paper"), (1.0, "stable", None)]
    + [(lam, preset, None) for preset in ("paper", "released") for lam in (0.0, 0.3, 1.0)],
)
def test_the_gradient_is_that_of_an_independent_loop(tokenizer, lam, preset, scale):
    """Row by row, unpadded, with Pearson's g(r) = r and f*(g(r)) = r + r^2 / 4 written out."""
    policy, reference = (build_model(tokenizer, seed).double().eval() for seed in (0, 1))
    settings = replace(SETTINGS, preset=preset, scale=scale)
    config = settings.losses(lam)
    batch = next(scored(build_model(tokenizer, 0).eval(), tokenizer, seed=0))
    preferred = next(loop.preferences(tokenizer, settings, seed=0))
    beta = settings.beta

    own_gamma = 1.0 if preset == "released" else 0.0

    def reward(rows, row, gamma) -> tuple[torch.Tensor, float]:
        tokens = rows.responses[row][rows.mask[row].bool()]
        ids = torch.cat([rows.prompts[row], tokens])[None]
        log_probs = [
            model(input_ids=ids).logits.float()[0, -len(tokens) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None])
            for model in (policy, reference)
        ]
        now = log_probs[0].sum()
        moved = beta * (now - log_probs[1].sum().detach()) + gamma * (now - now.detach())  # pi_old is the policy
        return moved, (log_probs[0].mean() if preset == "stable" else now).item()

    on_policy, slopes = torch.zeros(()), {"on_policy": 0.0, "preference": 0.0}
    values = [reward(batch, row, own_gamma) for row in range(len(batch.rewards))]
    for group in range(SETTINGS.prompts):
        rows = [row for row in range(len(values)) if batch.groups[row] == group]
        rewards = [batch.rewards[row].item() for row in rows]
        mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
        for sign in (+1, -1):
            side = [row for row in rows if sign * (batch.rewards[row].item() - mean) > 1e-9]
            of_all = {row: math.exp(sign * batch.rewards[row].item() - values[row][1]) for row in rows}
            # stable: a mean of 1 on the side; paper and released: shares of the whole group (Eq. 11 and 12).
            mass = sum(of_all[row] for row in side) / len(side) if preset == "stable" and side else sum(of_all.values())
            for row in side:
                r, _ = values[row]
                size = abs(batch.rewards[row].item() - mean) / (std + 1e-6) * of_all[row] / mass
                on_policy = on_policy + size * (-r if sign > 0 else r + r**2 / 4) / len(values)
                slopes["on_policy"] += size / len(values) * abs(1.0 if sign > 0 else 1 + r.item() / 2)
    preference = torch.zeros(())
    for row in range(len(preferred.desirable)):
        r, _ = reward(preferred, row, 0.0)
        preference = preference + (-r if preferred.desirable[row] else r + r**2 / 4) / SETTINGS.preference_pairs
        slope = abs(1.0 if preferred.desirable[row] else 1 + r.item() / 2)
        slopes["preference"] += slope / SETTINGS.preference_pairs
    s_all, s_on = (1 / beta, 1.0) if (preset, scale) == ("stable", None) else (1.0, (1 + beta) / (beta + own_gamma))
    expected = s_all * (lam * preference + (1 - lam) * s_on * on_policy)

    loss, measured = loop.hybrid_loss(
        policy, reference, config, batch if lam < 1 else None, preferred if lam > 0 else None
    )
    for half, factor in (
        ("on_policy", s_all * (1 - lam) * s_on * (beta + own_gamma)),
        ("preference", s_all * lam * beta),
    ):
        assert measured.get(f"{half}_slope", 0.0) == pytest.approx(factor * slopes[half], rel=1e-4)
    if lam < 1:
        lengths = batch.mask.sum(dim=1, keepdim=True)
        given = torch.tensor(
            [[value] for _, value in values]
        )  # log pi_old: the mean of a response's tokens, or the sum
        old, sums = (given, given * lengths) if preset == "stable" else (given / lengths, given)
        carried = {}
        for name in ("group", "side"):
            log_probs = sums if name == "group" else old
            mask = torch.ones_like(old)
            weights = group_weights(batch.rewards, batch.groups, "softmax_is", log_probs, mask, weight_scale=name)
            carried[name] = (group_advantages(batch.rewards, batch.groups).abs() * weights).mean().item()
        assert measured["q"] == pytest.approx(carried["group"] / carried["side"], rel=1e-4)
    parameters = list(policy.parameters())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in torch.autograd.grad(loss, parameters, retain_graph=True))
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.fixture
def made(monkeypatch) -> list[tuple]:
    """Replaces the runs, and lists those that the command line asks for."""
    calls = []

    def run(settings, lam, seed, cache, on_step):
        calls.append((lam, seed))
        rates = {key: lam / 3 for key in ("proxy", "true", "confident", "true_greedy")}
        return {"before": rates, "after": rates, "curves": {"loss": [1 / 3] * 2}}

    monkeypatch.setattr(lab, "run", run)
    monkeypatch.setattr(lab, "warm_model", lambda seed, cache: None)
    return calls


def invoke(out: Path, *options: str):
    app = typer.Typer()
    app.command()(lab.main)
    return CliRunner().invoke(app, [*options, "--out", str(out)])


def test_a_reporting_run_is_made_once_and_a_tuning_run_always_recorded(tmp_path, made):
    out = tmp_path / "results"
    assert invoke(out, "--seeds", "0", "--lam", "0", "--lam", "0.5").exit_code == 0
    assert invoke(out, "--seeds", "0", "--seeds", "100", "--lam", "0.5", "--lam", "1").exit_code == 0
    assert made == [(0.0, 0), (0.5, 0), (1.0, 0), (0.5, 100), (1.0, 100)]
    sweep, tuning = (report.read(out / f"{name}.json") for name in ("sweep_stable", "tuning"))
    assert [(run["lambda"], run["seed"]) for run in sweep + tuning] == made
    assert sweep[1]["after"]["true"] == 0.166667 and sweep[1]["settings"] == asdict(loop.Settings())
    assert {"seconds", "commit", "date"} <= sweep[0].keys()
    assert (out / "hybrid_sweep.png").stat().st_size > 1000
    # Other settings are a new configuration on a tuning seed, and no part of the same sweep on another.
    assert invoke(out, "--seeds", "100", "--lam", "1", "--steps", "7").exit_code == 0
    assert len(report.read(out / "tuning.json")) == 3
    refused = invoke(out, "--seeds", "1", "--lam", "1", "--steps", "7")
    assert refused.exit_code == 2 and "--out" in refused.output
    assert len(made) == 6


@pytest.mark.parametrize("option", [("--divergence", "nope"), ("--lam", "2"), ("--beta", "0"), ("--preset", "x")])
def test_a_setting_that_cannot_work_is_refused_before_the_first_run(tmp_path, made, option):
    refused = invoke(tmp_path, *option)
    assert refused.exit_code == 2 and option[1] in refused.output and not made


def test_the_page_says_what_the_results_hold():
    """Against the json itself, not only against the function that makes the page."""
    text = (report.HERE / "README.md").read_text()
    assert text == report.page(), "run `python experiments/lambda_lab/report.py`"
    sweep, tuning = (json.loads((report.RESULTS / f"{name}.json").read_text()) for name in ("sweep_stable", "tuning"))
    paper, released = (
        json.loads((report.RESULTS / f"sweep_{name}.json").read_text()) for name in ("paper", "released")
    )
    matched = (0.15, 0.35, 0.61)
    for runs, preset, more in ((sweep, "stable", matched), (paper, "paper", ()), (released, "released", ())):
        cells = [(run["lambda"], run["seed"]) for run in runs]
        lambdas = sorted([0, 0.25, 0.5, 0.75, 1, *more])
        assert sorted(cells) == [(lam, seed) for lam in lambdas for seed in range(5)]
        assert all(run["settings"] == asdict(loop.Settings(preset=preset)) for run in runs)
    q = np.mean([run["curves"]["q"][0] for run in paper if run["lambda"] < 1])
    for lam, other in zip((0.25, 0.5, 0.75), matched, strict=True):
        odds = q * (1 + 1 / 0.1) * (1 - lam) / lam
        assert 1 / (1 + odds) == pytest.approx(other, abs=6e-3)
        (row,) = re.findall(rf"^\| {lam} \| (.*) \|$", text, flags=re.MULTILINE)
        cells = [cell.split(" ± ")[0].split(", ")[0] for cell in row.split(" | ")]
        expected = []
        for runs, at in ((paper, lam), (sweep, other)):
            group = [run for run in runs if run["lambda"] == at]
            first = [[run["curves"][f"{half}_slope"][0] for half in ("on_policy", "preference")] for run in group]
            expected += [np.mean([run["after"][key] for run in group]) for key in ("proxy", "true")]
            expected += [np.mean([on / (on + off) for on, off in first])]
        found = [float(cell) for cell in (*cells[:3], *cells[5:])]
        assert found == pytest.approx(expected, abs=6e-3)
        assert found[2] == pytest.approx(found[5], abs=0.02)  # the same balance, whatever lambda is called
        (row,) = re.findall(rf"^\| {lam}, {other} \| (.*) \|$", text, flags=re.MULTILINE)
        ours, theirs = (
            {r["seed"]: r["after"] for r in runs if r["lambda"] == at} for runs, at in ((sweep, other), (paper, lam))
        )
        keys = ("proxy", "true", "confident", "true_greedy")
        for cell, key in zip(row.split(" | "), keys, strict=True):
            gaps = np.array([ours[seed][key] - theirs[seed][key] for seed in range(5)])
            mean, alike = re.fullmatch(r"([+-]\d\.\d+) \((\d) of 5\)", cell).groups()
            assert float(mean) == pytest.approx(gaps.mean(), abs=6e-4) and int(alike) == (gaps * gaps.mean() > 0).sum()
    for name, runs in (("stable", sweep), ("paper", paper), ("released", released)):
        true = {(run["lambda"], run["seed"]): run["after"]["true"] for run in runs}
        wins = [sum(true[m, s] > max(true[0, s], true[1, s]) for s in range(5)) for m in (0.25, 0.5, 0.75)]
        assert f"| {name} | {wins[0]} | {wins[1]} | {wins[2]} |" in text
    for lam in (0, 0.25, 0.5, 0.75, 1):
        row, _ = re.findall(rf"^\| lambda {lam} \| (.*) \|$", text, flags=re.MULTILINE)  # and one of all presets
        after = {
            key: np.array([run["after"][key] for run in sweep if run["lambda"] == lam]) for key in sweep[0]["after"]
        }
        after["last_digit"] = (after["proxy"] - 0.6 * after["confident"]) / 0.4
        keys = ("proxy", "true", "confident", "last_digit", "true_greedy")
        for cell, values in zip(row.split(" | "), map(after.get, keys), strict=True):
            assert [float(number) for number in cell.split(" ± ")] == pytest.approx(
                [values.mean(), values.std(ddof=1)], abs=6e-4
            )
    assert all(run["seed"] >= 100 for run in tuning)
    tried = {json.dumps(run["settings"], sort_keys=True) for run in tuning}
    assert f"{len(tried)} configurations were tried ({len(tuning)} runs" in text
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (report.HERE / target).exists(), target
