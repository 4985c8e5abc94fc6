"""Options of the command."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from fgrpo_plugin.pinned import VERL
from fgrpo_plugin.plan.older_options import SHOWN
from tests.plan.planning import ROOT, run


def test_a_model_alone_is_planned_with_what_our_recipes_share():
    alone = json.loads(run("--model", "qwen2.5-7b", "--gpu", "H100", "--json").stdout)
    words = [
        "+fgrpo=rlvr",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B",
    ]
    assert shlex.split(alone["command"].replace("\\\n", " "))[3:7] == words
    assert json.loads(run("--gpu", "H100", "--json", *words).stdout) == alone
    longer = ("--model", "qwen2.5-7b", "--gpu", "H100", "--json", "data.max_response_length=4096")
    plan = json.loads(run(*longer).stdout)
    assert "+fgrpo=rlvr" in plan["command"] and plan["step_seconds"] > 2 * alone["step_seconds"]
    grpo = ("algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.use_dynamic_bsz=true")
    plan = json.loads(run("--model", "qwen2.5-7b", "--gpu", "H100", "--json", *grpo).stdout)
    assert "fgrpo" not in plan["command"] and "old log-probs" in plan["seconds"]


def test_assumptions_are_set_by_name():
    words = ("--model", "qwen2.5-7b", "--gpu", "H100", "--json")
    usual = json.loads(run(*words).stdout)
    slow = json.loads(run(*words, "--assume", "matmul=0.3", "--assume", "memory_gib=94").stdout)
    assert slow["assumptions"]["matmul"] == 0.3 and slow["seconds"]["update"] > 1.5 * usual["seconds"]["update"]
    assert slow["gpu"]["memory_gib"] == 94


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "qwen2.5-7b"], "name the GPU: --gpu H100"),
        (["--gpu", "H100"], "name what to plan: --recipe math_7b, --model"),
        (["--gpu", "H100", "--model", "gpt-5"], "gpt-5 is neither known"),
        (["--gpu", "H999", "--model", "qwen2.5-7b"], "H999 is not known"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "--assume", "matmul=2"], "--assume matmul=2.0 must be"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "--assume", "matmull=2"], "matmull is not known; nearest: matmul"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "--assume", "matmul"], "write matmul= and a number"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "trainer.nnodes=two"], "trainer.nnodes='two' must be a whole"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "--mean-response", "9999"], "mean response 9999 is more than"),
    ],
)
def test_bad_input_is_one_sentence(words, said):
    done = run(*words)
    assert done.exit_code == 2 and not isinstance(done.exception, ValueError)
    assert said in " ".join(done.stderr.split())
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_without_a_model_is_named_as_such(tmp_path):
    done = run("--model", tmp_path, "--gpu", "H100")
    assert done.exit_code == 2 and f"{tmp_path} is a folder that has no config.json" in done.stderr


def test_without_verl_the_remedy_is_said():
    program = (
        "import sys; sys.modules['verl'] = None\n"
        "from fgrpo_plugin.plan.command import plan\n"
        "try: plan(model='qwen2.5-7b', gpu='H100')\n"
        "except ValueError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert f"pip install verl=={VERL}" in done.stdout


def test_help_shows_ten_options_and_they_are_those_that_errors_name():
    shown = re.findall(r"^  (--[a-z-]+)", run("--help").output, flags=re.MULTILINE)
    assert shown == [*SHOWN, "--help"] and len(SHOWN) == 10


def test_documented_commands_run_and_the_example_is_current():
    page = (ROOT / "docs" / "plan.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    commands = [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("fgrpo plan")]
    assert len(commands) == 5
    for command in commands:
        done = run(*shlex.split(command)[2:], "--json")
        assert json.loads(done.stdout)["fits"] is (done.exit_code == 0), command
    command, shown = re.search(r"```text\n\$ fgrpo plan (.*?)\n(.*?)```", page, flags=re.DOTALL).groups()
    made = run(*shlex.split(command)).output
    assert [line.rstrip() for line in made.splitlines()] == shown.splitlines(), "docs/plan.md is out of date"
