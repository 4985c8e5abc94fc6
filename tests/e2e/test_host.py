"""Drives the stock verl on the CPU: three starts, each serving several assertions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fgrpo_plugin.host.metric_table import METRICS
from fgrpo_plugin.processes import MARKER, end_run, marked_processes, shared_memory_segments
from fgrpo_plugin.quickstart.command import host_command, host_environment
from fgrpo_plugin.quickstart.inputs import addition_inputs
from fgrpo_plugin.quickstart.options import QuickstartOptions
from fgrpo_plugin.quickstart.run import run_quickstart
from fgrpo_plugin.quickstart.summary import read_metrics, rewards
from tests.e2e.host_runs import of_command, ours, wait_for_step

pytestmark = pytest.mark.e2e

STEPS = 4
MORE = 5  # the first update is at the old schedule's last learning rate, 0; the gap then grows with each step
GAP = 1e-2
ROLLOUT_GAP = "actor/f_divergence/rollout_gap"  # mean |log p_actor - log p_vLLM| over response tokens, nats
REFERENCE_GAP = "actor/f_divergence/reference_gap"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A short run whose learning rate moves log-probs visibly within a step."""
    run = tmp_path_factory.mktemp("trained") / "run"
    small = ("data.train_batch_size=16", "actor_rollout_ref.actor.optim.lr_warmup_steps=0")
    return run_quickstart(QuickstartOptions(steps=STEPS, run_dir=run, learning_rate=2e-3, overrides=small))


def _steps(run: Path) -> list[dict]:
    return [row["data"] for row in read_metrics(run / "metrics.jsonl") if row["step"] > 0]


def test_every_step_reports_f_divergence_metrics(trained):
    steps = _steps(trained)
    assert len(steps) == STEPS
    for step in steps:
        assert ours(step) == {metric.name for metric in METRICS if not metric.f_hal_only}
        assert "actor/grad_norm" in step and step["actor/grad_norm"] > 0
    assert steps[0][REFERENCE_GAP] < 1e-4  # before the first update the actor is the reference
    assert steps[0]["actor/f_divergence/divergence_estimate"] == pytest.approx(0.0, abs=1e-4)


def test_parameters_moved_and_the_checkpoint_holds_them(trained):
    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor

    before = load_file(trained / "model" / "model.safetensors")
    folder = trained / "checkpoints" / f"global_step_{STEPS}" / "actor"
    after = torch.load(folder / "model_world_size_1_rank_0.pt", weights_only=False)
    moved = 0.0
    for name, old in before.items():
        new = after[name]
        new = new._local_tensor if isinstance(new, DTensor) else new
        moved = max(moved, (new.float() - old.float()).abs().max().item())
    assert moved > 1e-3


def test_vllm_holds_the_actors_weights_after_each_sync(trained):
    steps = _steps(trained)
    assert max(step[REFERENCE_GAP] for step in steps[1:]) >= 0.1  # log-probs have moved by so much
    for step in steps:
        assert step[ROLLOUT_GAP] <= GAP
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.999


def test_the_summary_and_the_picture_are_there(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["algorithm"] == "f_grpo" and summary["divergence"] == "pearson"
    assert 0 < summary["reward_first10"] < 1 and 0 <= summary["heldout_accuracy_before"] <= 1
    assert (trained / "reward_curve.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def resumed_without_sync(trained, tmp_path_factory) -> Path:
    """More steps from the checkpoint, the weight sync switched off after the first; then vLLM's engine is killed."""
    run = tmp_path_factory.mktemp("resumed")
    (run / "logs").mkdir()
    overrides = (
        "data.train_batch_size=16",
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={trained / 'checkpoints' / f'global_step_{STEPS}'}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "actor_rollout_ref.actor.optim.lr_scheduler_type=constant",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
    )
    options = QuickstartOptions(learning_rate=2e-3, overrides=overrides)
    inputs = addition_inputs(run, trained / "model")
    command = host_command(run, options, STEPS + 10 * MORE, inputs, run / "ray")
    command = [word for word in command if "_temp_dir" not in word]
    run_id = f"test-{os.getpid()}"
    env = {**host_environment(run, run_id), "VERL_USE_EXTERNAL_MODULES": "tests.e2e.no_sync"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), env.get("PYTHONPATH", "")])
    log = run / "train.log"
    try:
        with log.open("w") as output:
            process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        wait_for_step(STEPS + MORE, process, run)
        (engine,) = [found for found in marked_processes(run_id) if "EngineCore" in " ".join(found.cmdline())]
        engine.kill()
        assert process.wait(timeout=60) != 0
    finally:
        end_run(run_id)
    return run


def test_the_death_of_vllms_engine_ends_the_run_with_its_name(resumed_without_sync):
    log = (resumed_without_sync / "train.log").read_text()
    assert "fgrpo-plugin: the engine of rollout server 0 has died, and the run ends here (EngineCore" in log
    assert "PartDied: the engine of rollout server 0 has died" in of_command(log)[-1000:]


def test_the_checkpoint_loads_and_training_goes_on(resumed_without_sync, trained):
    rows = [row for row in read_metrics(resumed_without_sync / "metrics.jsonl") if row["step"] > 0][:MORE]
    assert [row["step"] for row in rows] == list(range(STEPS + 1, STEPS + MORE + 1))
    # The actor resumes where it was, away from the reference, and vLLM got the loaded weights.
    assert rows[0]["data"][REFERENCE_GAP] > 0.05
    assert rows[0]["data"][ROLLOUT_GAP] <= GAP


def test_the_weight_check_fails_when_the_sync_is_disabled(resumed_without_sync):
    steps = _steps(resumed_without_sync)
    assert max(step[ROLLOUT_GAP] for step in steps[1:]) > 0.1  # where the check with the sync forbids 1e-2
    assert min(step["training/rollout_actor_probs_pearson_corr"] for step in steps[1:]) < 0.999


def test_own_data_own_model_and_an_interrupt_that_leaves_nothing(trained, tmp_path):
    """DATA= and MODEL= through the command line, stopped by Ctrl-C once it trains."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{a}+{b}="}],
            "data_source": "mine",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        }
        for a in range(20, 28)
        for b in range(30, 38)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
        "    return float(solution_str.strip() == ground_truth)\n"
    )
    run, before = tmp_path / "run", shared_memory_segments()
    command = [sys.executable, "-m", "fgrpo_plugin.cli", "quickstart", "--run-dir", str(run), "--data", str(data)]
    command += ["--model", str(trained / "model"), "--steps", "50"]
    command += ["--override", f"reward.custom_reward_function.path={reward}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _interrupt_once_it_trains(process, run)
    finally:
        process.terminate()  # does nothing where the interrupt did its work; a run ends in order at this signal too
    assert process.returncode not in (0, None)
    deadline = time.monotonic() + 60
    while shared_memory_segments() - before:
        assert time.monotonic() < deadline, shared_memory_segments() - before
        time.sleep(0.5)
    assert rewards(read_metrics(run / "metrics.jsonl"))[0] > 0


def _interrupt_once_it_trains(process: subprocess.Popen, run: Path) -> None:
    deadline = time.monotonic() + 400
    while len(rewards(read_metrics(run / "metrics.jsonl"))) < 1 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert process.poll() is None, (run / "logs" / "train.log").read_text()[-3000:]
    run_ids = {p.environ().get(MARKER) for p in _children(process.pid)} - {None}
    assert len(run_ids) == 1
    run_id = run_ids.pop()
    assert len(marked_processes(run_id)) > 3
    process.send_signal(signal.SIGINT)
    process.wait(timeout=90)
    assert marked_processes(run_id) == []


def _children(pid: int) -> list:
    import psutil

    return psutil.Process(pid).children()
