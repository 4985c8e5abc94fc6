"""LoRA through stock verl on the CPU, merged or as an adapter; a transfer of weights that fails ends the run."""

import pytest

from tests.e2e.host_runs import SAVED, STEPS, F, of_command, state, steps, unequal

pytestmark = pytest.mark.e2e

MODEL = "actor_rollout_ref.model"
LORA = (f"{MODEL}.lora_rank=8", f"{MODEL}.lora_alpha=16", f"{MODEL}.target_modules=all-linear")
MERGED = (*LORA, f"++{MODEL}.lora.merge=true")
F_GRPO = (
    "algorithm.adv_estimator=f_grpo",
    "~data.preference",
    "++actor_rollout_ref.actor.policy_loss.f_divergence.lam=0",
)
FAILING = "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=tests.e2e.failing_worker.FailingExtension"


def _check(run, count):
    found = steps(run)
    assert [step for step, _ in found] == list(range(1, count + 1))
    for _, step in found:
        # The rollout engine computes with the weights that the actor trains, in float32.
        assert step["training/rollout_probs_diff_mean"] < 1e-6
        assert step["actor/grad_norm"] > 0
    assert abs(found[0][1][F + "reference_gap"]) < 1e-6  # the reference is the model without its adapter
    assert abs(found[-1][1][F + "reference_gap"]) > 1e-4


def test_an_error_while_weights_are_sent_ends_the_run_with_its_cause(host):
    run = host.ends_by_itself("failing", *MERGED, FAILING)
    log = (run / "train.log").read_text()
    assert "planted: the engine cannot take these weights" in of_command(log)[-1000:]
    _check(run, 2)


@pytest.mark.long
@pytest.mark.parametrize("how", [LORA, MERGED], ids=["adapter", "merged"])
def test_f_grpo_trains_an_adapter(host, how):
    _check(host.finish(f"f_grpo_{len(how)}", *how, *F_GRPO), STEPS)


@pytest.mark.long
def test_f_hal_trains_an_adapter_and_resumes_it(host):
    whole = host.finish("adapter", *LORA)
    _check(whole, STEPS)
    host.kill_after(SAVED + 1, "killed_adapter", *LORA)
    run = host.finish("killed_adapter", *LORA)
    assert [step for step, _ in steps(run)] == [3, 4]
    assert unequal(whole, run) == {}
    assert state(run, STEPS) == state(whole, STEPS)
