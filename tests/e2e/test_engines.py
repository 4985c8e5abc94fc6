"""f-HAL through Ray, vLLM and each engine: step for step the run of FSDP2 on one rank (CPU, gloo, float32).

In deterministic mode runs draw the same responses as long as their weights are the same, in the actor and in vLLM.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.host_runs import SAVED, STEPS, F, differences, state, steps

pytestmark = pytest.mark.e2e

TWO = "trainer.n_gpus_per_node=2"
MEGATRON = "actor_rollout_ref.actor.megatron"
HYBRID = ("data.preference.keep_pairs=true", "actor_rollout_ref.actor.policy_loss.f_divergence.divergence=kl")
TENSOR = (TWO, f"{MEGATRON}.tensor_model_parallel_size=2")
GROUPS = "[quickstart_megatron,f_grpo,f_hal]"
# name -> config groups, overrides
ENGINES = {
    "FSDP 1": ("laptop_hybrid", ("actor_rollout_ref.actor.strategy=fsdp", "actor_rollout_ref.ref.strategy=fsdp")),
    "FSDP2, two ranks": ("laptop_hybrid", (TWO,)),
    "Megatron": (GROUPS, HYBRID),
    "Megatron, pipeline parallel": (GROUPS, (*HYBRID, TWO, f"{MEGATRON}.pipeline_model_parallel_size=2")),
}


def check(expected: Path, run: Path, figure: Callable) -> None:
    largest, found = differences(expected, run), steps(run)
    gap = max(step[F + "rollout_gap"] for _, step in found)
    figure(f"run, {run.name}", "difference", max(largest.values()))
    figure(f"run, {run.name}", "actor against vLLM", gap)
    assert max(largest.values()) < 1e-3, largest
    assert gap < 1e-5  # nats
    assert found[-1][1][F + "reference_gap"] > 0.1  # log-probs have moved by so much


def test_megatron_with_tensor_parallel_ranks_is_fsdp2(host, uninterrupted, figure):
    run = host.finish("tensor", *HYBRID, *TENSOR, groups=GROUPS)
    assert [step for step, _ in steps(run)] == list(range(1, STEPS + 1))
    check(uninterrupted, run, figure)
    assert state(run, STEPS) == state(uninterrupted, STEPS)  # the same preference rows


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_fsdp2_on_one_rank(host, uninterrupted, engine, figure):
    groups, overrides = ENGINES[engine]
    run = host.finish(engine.replace(", ", "_").replace(" ", "_"), *overrides, groups=groups)
    assert [step for step, _ in steps(run)] == list(range(1, STEPS + 1))
    check(uninterrupted, run, figure)


@pytest.mark.long
def test_a_megatron_run_that_is_killed_goes_on_as_the_uninterrupted_one(host, uninterrupted, figure):
    host.kill_after(SAVED + 1, "killed", *HYBRID, *TENSOR, groups=GROUPS)
    run = host.finish("killed", *HYBRID, *TENSOR, groups=GROUPS)
    assert "Resuming from" in (run / "train.log").read_text()
    assert [step for step, _ in steps(run)] == list(range(SAVED + 1, STEPS + 1))
    check(uninterrupted, run, figure)
    assert state(run, STEPS) == state(uninterrupted, STEPS)
