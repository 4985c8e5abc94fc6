"""Options that are no longer shown: each does what the override does that its line names."""

import json
import shlex

import pytest

from fgrpo_plugin.plan.older_options import ASSUMED, FIELDS, SWITCHES, rewrite
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun
from tests.plan.planning import run

VALUES = {
    "dp": "--model qwen2.5-7b --sp 2 --fsdp-size 4 --batch 512 --minibatch 256 --n 8 --prompt-length 256 "
    "--response-length 512 --tokens-per-gpu 4096 --dtype bf16 --no-param-offload --optimizer-offload "
    "--step-offload --recompute none --lora-rank 16 --fused-kernels --rollout-tp 2 --utilization 0.6 "
    "--max-num-seqs 128 --engine fsdp",
    "megatron": "--model qwen3-30b-a3b --engine megatron --tp 2 --pp 2 --cp 2 --ep 2 --etp 1 --micro-rows 2 "
    "--recompute full --ref-offload --param-offload",
}


@pytest.mark.parametrize("words", VALUES.values(), ids=VALUES)
def test_an_older_option_is_the_override_that_its_line_names(words):
    older = run(*shlex.split(words), "--gpu", "H100", "--nodes", 2, "--json")
    lines = [line for line in older.stderr.splitlines() if " is written " in line]
    options = [word for word in shlex.split(words) if word.startswith("--") and word != "--model"]
    assert {line.split()[2] for line in lines} == set(options)
    overrides = [word for line in lines for word in line.split(" is written ")[1].split()]
    assert all("=" in word for word in overrides)
    model = words.split()[:2]
    now = json.loads(run(*model, "--gpu", "H100", "--nodes", 2, "--json", *overrides).stdout)
    before = json.loads(older.stdout)
    assert now.pop("command").split()[3:].sort() == before.pop("command").split()[3:].sort()
    assert now == before


def test_an_older_assumption_is_one_that_is_named():
    words = ("--model", "qwen2.5-7b", "--gpu", "H100", "--json")
    older = run(*words, "--matmul", "0.3", "--memory-gib=94")
    assert "--matmul 0.3 is written --assume matmul=0.3" in older.stderr
    assert older.stdout == run(*words, "--assume", "matmul=0.3", "--assume", "memory_gib=94").stdout


def test_every_older_option_stands_for_something_that_is_there():
    fields = PlannedRun.__dataclass_fields__
    assert set(FIELDS.values()) <= set(fields)
    from fgrpo_plugin.plan.command import gpu_fields

    assert {name.replace("-", "_") for name in ASSUMED} <= {*gpu_fields(), *Assumptions.__dataclass_fields__}


def test_switches_and_values_are_told_from_overrides():
    found = rewrite(["a.b=1", "--tp", "8", "--no-param-offload", "--fsdp-size", "-1", "--lam=0.5", "c=2"])
    assert found.overrides == ["a.b=1", "c=2"]
    assert found.fields == {"tp": "8", "param_offload": False, "shard": "-1", "lam": "0.5"}
    assert set(SWITCHES) <= set(FIELDS)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tp"], "--tp needs a value"),
        (["--tp", "--pp", "2"], "--tp needs a value"),
        (["--param-offload=yes"], "write --param-offload or --no-param-offload"),
        (["--mean-respons", "3"], "--mean-respons is no option of fgrpo plan; nearest: --mean-response"),
        (["--learning-rate", "3"], "--learning-rate is no option of fgrpo plan. Settings of the run are written as"),
    ],
)
def test_what_never_was_an_option_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        rewrite(words)
