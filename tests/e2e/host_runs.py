"""Short f-HAL runs of the stock verl on the CPU, which tests start with overrides of their own."""

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch

from fgrpo_plugin.host.driver.preference_source import STATE_FILE
from fgrpo_plugin.host.settings.determinism import SWITCH
from fgrpo_plugin.leftovers import short_lived_since
from fgrpo_plugin.processes import end_run, family, marked_processes, segments_of
from fgrpo_plugin.quickstart.command import host_command, host_environment
from fgrpo_plugin.quickstart.inputs import hybrid_inputs
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model
from fgrpo_plugin.quickstart.options import QuickstartOptions
from fgrpo_plugin.quickstart.summary import read_metrics

STEPS, SAVED, ROWS = 4, 2, 64
F = "actor/f_divergence/"
COMPARED = (
    "actor/grad_norm",
    "actor/loss",
    "critic/score/mean",
    "response_length/mean",
    *(F + name for name in ("on_policy_loss", "preference_loss", "divergence_estimate", "reference_gap")),
)
MICRO_BATCHES = ("actor.ppo", "ref.log_prob", "rollout.log_prob")


class Host:
    """Runs of the stock verl that share a model, preference data and the cache of reference log-probs."""

    def __init__(self, folder: Path):
        self.folder = folder
        if (folder / "model").exists():  # of runs that go on
            self.model = folder / "model"
            self.inputs = hybrid_inputs(folder / "shared", self.model)
            return
        tokenizer = build_tokenizer()
        # Transformers gives the padding token's embedding no gradient, Megatron does, and an untrained model samples
        # that token. The end of an answer is never read.
        tokenizer.pad_token = tokenizer.eos_token
        self.model = save_model(build_model(tokenizer, 0), tokenizer, folder / "model")
        (folder / "shared" / "data").mkdir(parents=True)
        self.inputs = hybrid_inputs(folder / "shared", self.model)

    def start(
        self,
        name: str,
        *overrides: str,
        groups: str = "laptop_hybrid",
        verl: Path | None = None,
        modules: Sequence[str] = (),
        deterministic: bool = True,
        environment: Mapping[str, str] = MappingProxyType({}),
        total: int = STEPS,
    ) -> tuple[subprocess.Popen, str, Path]:
        """Start a run.

        Args:
            name: its folder; a second run of this name resumes the first.
            overrides: settings of verl.
            groups: value of +fgrpo.
            verl: the folder that holds another copy of verl/ than the installed one.
            modules: loaded into every process of verl.
            deterministic: a seed for each response, so that runs of any engine sample the same.
            environment: variables beside the run's.
            total: steps of training.
        """
        run = self.folder / name
        (run / "logs").mkdir(parents=True, exist_ok=True)
        (run / "metrics.jsonl").unlink(missing_ok=True)  # verl begins it anew, later
        given = (
            "data.train_batch_size=8",
            f"data.preference.batch_size={ROWS}",
            *(f"actor_rollout_ref.{key}_micro_batch_size_per_gpu=32" for key in MICRO_BATCHES),
            f"reward.custom_reward_function.path={Path(__file__).parent / 'noisy_reward.py'}",
            "reward.custom_reward_function.name=compute_score",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            f"trainer.save_freq={SAVED}",
            "trainer.resume_mode=auto",
            f"{SWITCH}={str(deterministic).lower()}",
            "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
            "actor_rollout_ref.rollout.agent.num_workers=1",  # each part of `PARTS` is one process
            *overrides,
        )
        options = QuickstartOptions(algo="f_hal", overrides=given)
        command = [w for w in host_command(run, options, total, self.inputs, run / "ray") if "_temp_dir" not in w]
        command[command.index("+fgrpo=laptop_hybrid")] = f"+fgrpo={groups}"
        # Of this start alone: the watch of an earlier one ends whatever bears its name.
        run_id = f"{name}-{uuid.uuid4().hex}"
        env = host_environment(run, run_id)
        places = [*([verl] if verl else []), Path(__file__).parents[2], env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(map(str, places))
        env["VERL_USE_EXTERNAL_MODULES"] = ",".join(modules)
        env |= environment
        with (run / "train.log").open("a") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        return process, run_id, run

    def finish(self, name: str, *overrides: str, timeout: float = 400.0, **how: Any) -> Path:
        """Run to the end."""
        process, run_id, run = self.start(name, *overrides, **how)
        try:
            assert process.wait(timeout=timeout) == 0, (run / "train.log").read_text()[-3000:]
        finally:
            end_run(run_id)
        return run

    def kill_after(self, step: int, name: str, *overrides: str, **how: Any) -> Path:
        """Run until ``step`` has been logged, and end it as a pre-empted job is ended."""
        process, run_id, run = self.start(name, *overrides, **how)
        try:
            wait_for_step(step, process, run)
            process.send_signal(signal.SIGKILL)
        finally:
            end_run(run_id)
        return run

    def ends_by_itself(self, name: str, *overrides: str, **how: Any) -> Path:
        """Run until it ends with an error."""
        process, run_id, run = self.start(name, *overrides, **how)
        try:
            assert process.wait(timeout=400) != 0
        finally:
            end_run(run_id)
        return run

    def part_dies(self, part: str, step: int, name: str, *overrides: str, delay: float = 0.0, **how: Any) -> Path:
        """Kill one process of a run, and see that all of it ends within 60 s and leaves nothing for another 60 s.

        Args:
            part: key of `PARTS`.
            step: the process is killed once this step has been logged,
            name: as for `start`.
            delay: and so many seconds later.
        """
        began = time.time()
        process, run_id, run = self.start(name, *overrides, **how)
        try:
            wait_for_step(step, process, run)
            time.sleep(delay)
            segments = segments_of(family(run_id, set()))
            if part == DRIVER:
                process.kill()
            else:
                (found,) = [found for found in marked_processes(run_id) if PARTS[part] in " ".join(found.cmdline())]
                found.kill()
            assert process.wait(timeout=60) != 0
            deadline = time.monotonic() + 60
            while left := [*marked_processes(run_id), *filter(Path.exists, segments), *left_unused(began)]:
                assert time.monotonic() < deadline, left
                time.sleep(0.5)
        finally:
            end_run(run_id)
        return run


def of_command(log: str) -> str:
    """What the command itself wrote in its log, last its error: Ray may write workers' lines of before behind that."""
    return "\n".join(line for line in log.splitlines() if not _OF_WORKER.match(line))


_OF_WORKER = re.compile(r"(\x1b\[\d+m)?\((\w+ )?pid=")

DRIVER = "driver"
PARTS = {
    "actor worker 0": "WorkerDict",
    "rollout server 0": "vLLMHttpServer",
    "the engine of rollout server 0": "EngineCore",
    "agent loop worker 0": "AgentLoopWorker",
    "reward loop worker 0": "RewardLoopWorker",
    "queue controller 0": "TransferQueueController",
    "queue storage 0": "SimpleStorageUnit",
    "TaskRunnerV1": "TaskRunnerV1",  # verl's own driver process; Ray names it
    "rollout router 0": "GlobalRequestLoadBalancer",
    DRIVER: "",  # the command itself, which then says nothing
}
"""What a message calls a part -> text in the title of its process."""


def left_unused(began: float) -> list[Path]:
    """Shared memory of short use, made since then, that no process of this machine has."""
    found = short_lived_since(began)
    return sorted(found - segments_of(psutil.process_iter())) if found else []


def wait_for_step(step: int, process: subprocess.Popen, run: Path) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 400
    while not any(row["step"] >= step for row in read_metrics(run / "metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, (run / "train.log").read_text()[-3000:]
        time.sleep(0.1)


def steps(run: Path) -> list[tuple[int, dict]]:
    return [(row["step"], row["data"]) for row in read_metrics(run / "metrics.jsonl") if row["step"] > 0]


def ours(data: dict) -> set[str]:
    """The names among a step's that docs/metrics.md has to explain."""
    places = (F, "val-preference/", "training/rollout_", "timing_s/join_preferences")
    return {name for name in data if name.startswith(places)}


def state(run: Path, step: int) -> dict:
    return json.loads((run / "checkpoints" / f"global_step_{step}" / STATE_FILE).read_text())["preference_sampler"]


def unequal(one: Path, two: Path) -> dict[str, tuple]:
    """Step and metric -> both values, where the same steps of two runs are not equal to the last bit.

    Times, memory, and how many reference log-probs an earlier run had left are no numbers of the training.
    """
    expected = dict(steps(one))
    return {
        f"step {step}, {name}": (expected[step].get(name), data.get(name))
        for step, data in steps(two)
        for name in expected[step].keys() | data.keys()
        if expected[step].get(name) != data.get(name)
        if not name.startswith(("timing", "perf/", "actor/perf/")) and name != F + "preference_cache_hits"
    }


def parameters(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The actor's weights of a run on one rank."""
    file = run / "checkpoints" / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt"
    found = torch.load(file, weights_only=False)
    return {name: value.to_local() if hasattr(value, "to_local") else value for name, value in found.items()}


def differences(one: Path, two: Path) -> dict[str, float]:
    """The largest difference between the same steps of two runs of a seed, by metric.

    Relative to the first run's value, or to 0.01 where that is larger.
    """
    found, expected = dict(steps(two)), dict(steps(one))
    assert found, "no step was logged"
    largest: dict[str, float] = {}
    for step, data in found.items():
        for name in COMPARED:
            gap = abs(data[name] - expected[step][name]) / max(abs(expected[step][name]), 1e-2)
            largest[name] = max(largest.get(name, 0.0), gap)
    return largest
