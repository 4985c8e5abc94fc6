"""A run's plain lines, from a log of verl 0.9.1 and Ray as a quick start had it."""

import json

from fgrpo_plugin.quickstart.news import STAGES, HostNews

LOG = (  # shortened; the last line has no end yet, as a progress bar has none
    "ray init kwargs: {'num_cpus': 12, 'runtime_env': {'env_vars': {'NCCL_DEBUG': 'WARN'}}}\n",
    "2026-11-27 12:43:34,302\tINFO worker.py:2038 -- Started a local Ray instance.\n",
    "\x1b[36m(TaskRunnerV1 pid=12480)\x1b[0m INFO:2026-11-27 12:43:44,890:Platform override from VERL_PLATFORM: cpu\n",
    "\x1b[36m(WorkerDict pid=12763)\x1b[0m After FSDP, memory allocated (GB): 0.71, memory reserved (GB): 0.71\n"
    "\x1b[36m(WorkerDict pid=12763)\x1b[0m After FSDP, memory allocated (GB): 0.71, memory reserved (GB): 0.71\n",
    "\x1b[36m(vLLMHttpServer pid=12903)\x1b[0m  '--dtype',\n"
    "\x1b[36m(TaskRunnerV1 pid=12480)\x1b[0m Creating file logger at runs/one/metrics.jsonl\n",
    "\x1b[36m(TaskRunnerV1 pid=12480)\x1b[0m Training Progress:   0%|          | 0/30 [00:00<?, ?it/s]",
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def news(tmp_path, steps=30):
    log = tmp_path / "train.log"
    log.touch()
    clock = Clock()
    return HostNews(tmp_path / "metrics.jsonl", log, tmp_path / "checkpoints", steps, clock), clock


def add(path, *parts):
    with path.open("a") as file:
        file.writelines(part if isinstance(part, str) else json.dumps(part) + "\n" for part in parts)


def row(step, reward=None, **more):
    return {"step": step, "data": {**({} if reward is None else {"critic/score/mean": reward}), **more}}


def test_each_stage_of_the_host_is_a_line_once(tmp_path):
    found, _ = news(tmp_path)
    said = []
    for part in LOG:
        # A line that is written in two pieces is one.
        add(found.log, part[:9])
        said += [*found.lines(), "|"]
        add(found.log, part[9:])
        said += [*found.lines(), "|"]
    assert [line for line in said if line != "|"] == [text for _, text in STAGES]
    add(found.log, "\rTraining Progress:   3%|\n", *LOG)
    assert found.lines() == []


def test_a_log_that_is_read_at_once_has_every_stage(tmp_path):
    found, _ = news(tmp_path)
    add(found.log, *LOG)
    assert found.lines() == [text for _, text in STAGES]


def test_the_first_each_tenth_and_the_last_step_are_lines_with_the_time_left(tmp_path):
    found, clock = news(tmp_path, steps=32)
    said = {}
    accuracy = "val-core/fgrpo/addition/acc/mean@1"
    add(found.metrics, row(0, **{accuracy: 0.25}))
    said[0] = found.lines()
    for step in range(1, 33):
        clock.now = 4.0 * step
        last = {accuracy: 0.75} if step == 32 else {}
        add(found.metrics, row(step, step / 100, **last))
        said[step] = found.lines()
    assert {step: lines for step, lines in said.items() if lines} == {
        0: ["held-out accuracy at step 0: 0.250"],
        1: ["step 1 of 32: reward 0.01"],
        10: ["step 10 of 32: reward 0.10, about 1 m 28 s left"],
        20: ["step 20 of 32: reward 0.20, about 48 s left"],
        30: ["step 30 of 32: reward 0.30, about 8 s left"],
        32: ["step 32 of 32: reward 0.32", "held-out accuracy at step 32: 0.750"],
    }


def test_of_few_steps_each_has_a_line_and_what_is_under_way_has_the_time_left(tmp_path):
    found, clock = news(tmp_path, steps=4)
    assert found.lines() == [] and found.under_way() is None
    said = []
    for step in range(1, 5):
        clock.now = 75.0 * step
        add(found.metrics, row(step, 0.5))
        said += found.lines()
        clock.now += 60  # within the next step the time of whole steps counts
        said.append(found.under_way())
    assert said == [
        "step 1 of 4: reward 0.50",
        "step 1 of 4",
        "step 2 of 4: reward 0.50, about 2 m 30 s left",
        "step 2 of 4, about 2 m 30 s left",
        "step 3 of 4: reward 0.50, about 1 m 15 s left",
        "step 3 of 4, about 1 m 15 s left",
        "step 4 of 4: reward 0.50",
        "step 4 of 4",
    ]


def test_the_judge_is_told_from_the_proxy_and_a_run_without_rollouts_still_counts(tmp_path):
    found, _ = news(tmp_path)
    add(found.metrics, row(10, **{"val-core/x/reward/mean@1": 0.5, "val-aux/x/true_reward/mean@1": 0.125}))
    assert found.lines() == [
        "step 10 of 30",
        "held-out proxy at step 10: 0.500",
        "held-out true reward at step 10: 0.125",
    ]


def test_a_checkpoint_is_a_line_once_it_is_whole(tmp_path):
    found, _ = news(tmp_path)
    (tmp_path / "checkpoints" / "global_step_30").mkdir(parents=True)
    assert found.lines() == []
    found.written.write_text("30")
    assert found.lines() == [f"checkpoint of step 30 written to {tmp_path / 'checkpoints'}"]
    assert found.lines() == []
