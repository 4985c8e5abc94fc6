"""Options of the command."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.plan.planning import MEGATRON, ROOT, run


def test_flags_alone_give_the_same_plan_as_a_configuration():
    flags = ["--model", "llama-3.1-70b", "--engine", "megatron", "--param-offload", "--ref-offload"]
    numbers = {"tp": 8, "pp": 4, "cp": 2, "nodes": 8, "rollout-tp": 8, "batch": 1024, "minibatch": 256, "n": 4}
    for name, value in ({"recompute": "full", "response-length": 512} | numbers).items():
        flags += [f"--{name}", value]
    alone = json.loads(run("--gpu", "H100", "--json", *flags).output)
    composed = json.loads(run("--gpu", "H100", "--json", *MEGATRON).output)
    assert alone["phases"] == composed["phases"]
    assert alone["seconds"] == pytest.approx(composed["seconds"])
    assert alone["command"] is None and composed["command"].startswith("python -m verl.trainer.main_ppo")


def test_assumptions_are_options():
    words = ("--model", "qwen2.5-7b", "--gpu", "H100", "--json")
    usual, slow = json.loads(run(*words).output), json.loads(run(*words, "--matmul", 0.3).output)
    assert slow["assumptions"]["matmul"] == 0.3 and slow["seconds"]["update"] > 1.5 * usual["seconds"]["update"]
    assert slow["phases"] == usual["phases"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "qwen2.5-7b"], "name the GPU: --gpu H100"),
        (["--gpu", "H100"], "name what to plan: --recipe math_7b"),
        (["--gpu", "H100", "--model", "gpt-5"], "gpt-5 is neither known"),
        (["--gpu", "H999", "--model", "qwen2.5-7b"], "H999 is not known"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "--lam", "0.5"], "needs --preference-rows"),
        (["--gpu", "H100", "--model", "qwen2.5-7b", "--matmul", "2"], "--matmul 2.0 must be"),
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


def test_planning_from_flags_imports_neither_torch_nor_verl():
    program = (
        "import sys, fgrpo_plugin.plan.report, fgrpo_plugin.plan.command as c\n"
        "try: c.plan(model='qwen2.5-7b', gpu='H100')\n"
        "finally: print(sorted({'torch', 'verl', 'ray', 'hydra'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip().endswith("[]")


def test_documented_commands_run_and_the_example_is_current():
    page = (ROOT / "docs" / "plan.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    commands = [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("fgrpo plan")]
    assert len(commands) == 4
    for command in commands:
        done = run(*shlex.split(command)[2:], "--json")
        assert json.loads(done.output)["fits"] is (done.exit_code == 0), command
    command, shown = re.search(r"```text\n\$ fgrpo plan (.*?)\n(.*?)```", page, flags=re.DOTALL).groups()
    made = run(*shlex.split(command)).output
    assert [line.rstrip() for line in made.splitlines()] == shown.splitlines(), "docs/plan.md is out of date"
