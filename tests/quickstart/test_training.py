"""What is said when verl ends early, falls silent, or ends with an error."""

import io
import json
import re
import subprocess
import sys
import time

import pytest
from rich.progress import Progress, TextColumn

from fgrpo_plugin.progress import Lines
from fgrpo_plugin.quickstart.news import HostNews
from fgrpo_plugin.quickstart.options import QuickstartError
from fgrpo_plugin.quickstart.training import _follow, _why
from fgrpo_plugin.terminal import Terminal


def follow(tmp_path, code, lines=(), steps=2, patience=30.0, said=None):
    metrics, log = tmp_path / "metrics.jsonl", tmp_path / "train.log"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log.touch()
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        with Progress(TextColumn("{task.description}"), disable=True) as progress:
            news = HostNews(metrics, log, tmp_path / "checkpoints", steps, time.monotonic)
            _follow(process, news, progress, patience, Lines(Terminal(file=said or io.StringIO(), width=200)))
            return progress.tasks[0]
    finally:
        process.kill()
        process.wait()


def step(number):
    return {"step": number, "data": {"critic/score/mean": 0.5}}


def test_a_run_that_made_its_steps_is_shown_to_its_end(tmp_path):
    bar = follow(tmp_path, "pass", [step(1), step(2)])
    assert bar.completed == bar.total == 2 and bar.fields["note"] == "reward 0.50"


@pytest.mark.parametrize(
    ("code", "lines", "words"),
    [
        ("raise SystemExit(3)", [step(1), step(2)], "exit code 3 after step 2 of 2"),
        ("pass", [step(1)], "exit code 0 after step 1 of 2"),
        ("pass", [], "exit code 0 after step 0 of 2"),
    ],
)
def test_an_early_end_names_its_step_and_exit_code(tmp_path, code, lines, words):
    with pytest.raises(QuickstartError, match=words):
        follow(tmp_path, code, lines)


def test_a_run_whose_workers_ray_has_ended_for_memory_does_not_wait_for_them(tmp_path):
    log = tmp_path / "train.log"
    said = "(raylet) 4 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed"
    code = f"import time; open({str(log)!r}, 'w').write({said!r}); time.sleep(60)"
    with pytest.raises(QuickstartError, match=r"because the machine's memory is full; .*; its log is .*train\.log"):
        follow(tmp_path, code, [step(1)])


def test_silence_before_the_first_step_ends_the_run_and_names_the_log(tmp_path):
    with pytest.raises(QuickstartError, match=r"no step for 0 s; its log is .*train\.log"):
        follow(tmp_path, "import time; time.sleep(60)", patience=0.2)


def test_a_slow_step_is_said_again_at_twice_the_time_and_goes_on(tmp_path):
    said = io.StringIO()
    metrics = tmp_path / "metrics.jsonl"
    later = json.dumps(step(2))
    code = f"import time; time.sleep(5); open({str(metrics)!r}, 'a').write({later!r} + chr(10)); time.sleep(1)"
    bar = follow(tmp_path, code, [step(1)], patience=1.0, said=said)
    assert bar.completed == 2 and "Ctrl-C ends it" in said.getvalue()
    waits = [int(seconds) for seconds in re.findall(r"step 2 has taken (\d+) s so far", said.getvalue())]
    assert len(waits) >= 2 and waits == [1, 2, 4, 8, 16][: len(waits)]  # how many: by the clock of a busy machine


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["noise", "fgrpo-plugin: our sentence."], "fgrpo-plugin: our sentence."),
        (["ValueError: the cause", "UserWarning: Error", "later"], "ValueError: the cause"),
        (["fgrpo-plugin: set 3 values:", "RuntimeError: out of memory", "end"], "RuntimeError: out of memory"),
        (["one", "two"], "two"),
        ([], "no output"),
    ],
)
def test_the_cause_is_our_sentence_or_the_last_error(tmp_path, lines, why):
    log = tmp_path / "train.log"
    log.write_text("\n".join([*lines, "Set the environment variable HYDRA_FULL_ERROR=1"]) if lines else "")
    assert _why(log).startswith(why)
