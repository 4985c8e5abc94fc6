"""verl's dynamic sampling (`algorithm.filter_groups`): f-GRPO and f-HAL train on groups that say something alone."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from tests.e2e.host_runs import ROWS, STEPS, F, Host, steps

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PROMPTS, SAMPLES = 8, 8
LOSS = "actor_rollout_ref.actor.policy_loss.f_divergence"


def _filtered(host: Host, name: str, *overrides: str) -> Path:
    return host.finish(
        name,
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=reward",
        "reward.custom_reward_function.name=silent_for_odd_sums",
        f"trainer.rollout_data_dir={host.folder / name / 'rollouts'}",
        f"{LOSS}.divergence=kl",
        f"{LOSS}.weighting=none",
        *overrides,
        deterministic=False,
    )


def _trained_on(run: Path, step: int) -> list[list[float]]:
    """The rewards of a step's groups, as verl has dumped the rows that it trained on."""
    groups: dict[str, list[float]] = defaultdict(list)
    for line in (run / "rollouts" / f"{step}.jsonl").read_text().splitlines():
        row = json.loads(line)
        groups[row["input"]].append(row["score"])
    return list(groups.values())


def _loss_at_the_reference(groups: list[list[float]]) -> float:
    """L_fGRPO of variational kl where every r is 0, from the definition: a mean over the rows that are trained on.

    g(0) = 0, and f*(g(0)) = e^-1.
    """
    good, bad = 0.0, math.exp(-1)
    losses = []
    for rewards in groups:
        mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
        for reward in rewards:
            advantage = (reward - mean) / (deviation + 1e-6)
            losses.append(abs(advantage) * (good if advantage > 0 else bad))
    return statistics.fmean(losses)


@pytest.mark.parametrize(("name", "lam"), [("filtered", 0), ("filtered_hybrid", 0.5)])
def test_groups_without_a_difference_are_replaced_and_the_denominators_are_of_those_that_are_left(host, name, lam):
    run = _filtered(host, name, f"{LOSS}.lam={lam}")
    found = dict(steps(run))
    assert list(found) == list(range(1, STEPS + 1))
    for step, data in found.items():
        groups = _trained_on(run, step)
        assert [len(group) for group in groups] == [SAMPLES] * PROMPTS
        assert all(0 < statistics.fmean(group) < 1 for group in groups)
        assert data[F + "zero_advantage_share"] == 0.0
        assert data["critic/score/mean"] == pytest.approx(statistics.fmean(map(statistics.fmean, groups)))
        if lam:
            assert data[F + "preference_share"] == ROWS / (ROWS + PROMPTS * SAMPLES)
    # About half of the prompts have an odd sum.
    assert sum(data.get("training/filter_groups/evicted_samples", 0) for data in found.values()) > STEPS
    assert found[1][F + "on_policy_loss"] == pytest.approx(_loss_at_the_reference(_trained_on(run, 1)), rel=1e-4)
