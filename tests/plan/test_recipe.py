"""Recipes of the package through the real host's configuration, the advice loop, and the command line."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer.testing

from fgrpo_plugin.cli import app
from fgrpo_plugin.model_shape import find_model, known_models
from fgrpo_plugin.plan.advice import advise, excess, shortfall
from fgrpo_plugin.plan.gpus import find_gpu
from fgrpo_plugin.plan.memory import phases
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun
from fgrpo_plugin.plan.recipe import overrides, planned_run_from_config

ROOT = Path(__file__).parents[2]
H100, A100 = find_gpu("H100"), find_gpu("A100-40")
ASSUMED = Assumptions()
MEGATRON = [
    "model_engine=megatron",
    "actor_rollout_ref.model.path=meta-llama/Llama-3.1-70B",
    "algorithm.adv_estimator=f_grpo",
    "trainer.nnodes=8",
    "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8",
    "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=4",
    "actor_rollout_ref.actor.megatron.context_parallel_size=2",
    "actor_rollout_ref.actor.megatron.param_offload=true",
    "actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=full",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=8",
    "actor_rollout_ref.rollout.n=4",
]


def run(*words):
    return typer.testing.CliRunner().invoke(app, ["plan", *map(str, words)])


def test_a_recipe_is_read_as_it_stands(stock_config):
    planned, notes = planned_run_from_config(stock_config("+fgrpo=math_7b"), H100)
    assert planned.model.name == "Qwen/Qwen2.5-Math-7B" and not notes
    expected = {
        "engine": "fsdp2",
        "gpus": 8,
        "lora_rank": 64,
        "prompts": 256,
        "group": 4,
        "longest": 1536,
        "tokens_per_gpu": 16384,
        "rollout_tp": 2,
        "utilization": 0.5,
        "recompute": "full",
        "dtype": "fp32",
        "compute_dtype": "bf16",
        "reference": True,
        "old_log_prob": False,
        "joined_rows": 0,
    }
    assert {name: getattr(planned, name) for name in expected} == expected


def test_f_hal_brings_its_preference_rows(stock_config):
    planned, notes = planned_run_from_config(stock_config("+fgrpo=safety"), H100)
    assert (planned.lam, planned.joined_rows) == (0.5, 512)  # as many as on-policy rows
    assert any("reward model" in note for note in notes)
    lam = "actor_rollout_ref.actor.policy_loss.f_divergence.lam"
    assert planned_run_from_config(stock_config("+fgrpo=safety", f"{lam}=0"), H100)[0].joined_rows == 0
    assert not planned_run_from_config(stock_config("+fgrpo=safety", f"{lam}=1"), H100)[0].generates
    schedule = f"{lam}={{schedule: linear, start: 1.0, end: 0.0}}"
    planned = planned_run_from_config(stock_config("+fgrpo=safety", schedule), H100)[0]
    assert planned.generates and planned.joined_rows == 512


def test_the_asynchronous_recipe_generates_on_gpus_of_its_own(stock_config):
    planned, notes = planned_run_from_config(stock_config("+fgrpo=async_7b"), H100)
    assert (planned.gpus, planned.generating_gpus, planned.all_gpus, planned.minibatch) == (8, 8, 16, 64)
    assert planned.colocated and any("side by side" in note for note in notes)
    more = stock_config(
        "+fgrpo=async_7b", "actor_rollout_ref.rollout.nnodes=2", "actor_rollout_ref.hybrid_engine=false"
    )
    planned, _ = planned_run_from_config(more, H100)
    assert (planned.generating_gpus, planned.all_gpus, planned.colocated) == (16, 24, False)
    with pytest.raises(ValueError, match="needs GPUs that generate"):
        planned_run_from_config(stock_config("+fgrpo=async_7b", "actor_rollout_ref.rollout.nnodes=0"), H100)
    plan = json.loads(run("--recipe", "async_7b", "--gpu", "H100", "--json").output)
    others = sum(seconds for phase, seconds in plan["seconds"].items() if phase != "generation")
    assert plan["gpus"] == 16
    assert plan["step_seconds"] == pytest.approx(max(plan["seconds"]["generation"], others))


def test_which_passes_an_algorithm_needs(stock_config):
    def passes(*words):
        planned = planned_run_from_config(stock_config("actor_rollout_ref.model.path=qwen2.5-7b", *words), H100)[0]
        return planned.reference, planned.old_log_prob

    dynamic = "actor_rollout_ref.actor.use_dynamic_bsz=true"
    assert passes(dynamic, "algorithm.adv_estimator=grpo") == (False, True)
    assert passes(dynamic, "algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.use_kl_loss=true") == (True, True)
    released = "+actor_rollout_ref.actor.policy_loss.f_divergence.preset=released"
    assert passes(dynamic, "algorithm.adv_estimator=f_grpo", released) == (True, True)  # four optimiser steps
    whole = "data.train_batch_size=256"
    assert passes(dynamic, "algorithm.adv_estimator=f_grpo", released, whole) == (True, False)


def test_megatrons_settings_are_read(stock_config):
    planned, _ = planned_run_from_config(stock_config(*MEGATRON), H100)
    assert (planned.tp, planned.pp, planned.cp, planned.dp, planned.gpus) == (8, 4, 2, 1, 64)
    assert planned.param_offload and planned.ref_offload and planned.recompute == "full"
    assert not planned.optimizer_offload and planned.compute_dtype == "bfloat16"


@pytest.mark.parametrize("setting", ["calculate_entropy=true", "entropy_coeff=0.01"])
def test_an_entropy_is_read(stock_config, setting):
    words = ("actor_rollout_ref.model.path=qwen2.5-7b", "actor_rollout_ref.actor.use_dynamic_bsz=true")
    assert not planned_run_from_config(stock_config(*words), H100)[0].entropy
    assert planned_run_from_config(stock_config(*words, f"actor_rollout_ref.actor.{setting}"), H100)[0].entropy


def test_stages_of_unequal_depth_are_left_to_the_configuration(stock_config):
    words = [word for word in MEGATRON if "pipeline" not in word and "context" not in word] + [
        "trainer.nnodes=6",
        "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=6",
    ]
    with pytest.raises(ValueError, match=r"pp \* virtual pp = 6 does not divide the 80 layers"):
        planned_run_from_config(stock_config(*words), H100)
    first = "+actor_rollout_ref.actor.megatron.override_transformer_config.num_layers_in_first_pipeline_stage=15"
    assert planned_run_from_config(stock_config(*words, first), H100)[0].pp == 6


FSDP = dict(model=find_model("Qwen/Qwen2.5-7B"), gpu=A100)
CHANGES = [
    ("fsdp2", {"param_offload": True, "optimizer_offload": True, "step_offload": True, "sp": 4, "shard": 4}),
    ("fsdp2", {"lora_rank": 32, "tokens_per_gpu": 4096, "log_prob_tokens_per_gpu": 8192, "fused_kernels": True}),
    ("fsdp2", {"utilization": 0.7, "rollout_tp": 4, "recompute": "none", "nodes": 2, "gpus_per_node": 4}),
    ("fsdp2", {"prompts": 64, "minibatch": 32, "group": 8, "epochs": 2, "prompt_length": 100, "response_length": 900}),
    ("fsdp", {"engine": "fsdp", "dtype": "bf16", "max_rows": 128, "bucket_mib": 512, "rollout_sleeps": False}),
    ("megatron", {"engine": "megatron", "tp": 4, "pp": 2, "param_offload": True, "ref_offload": True}),
    ("megatron", {"engine": "megatron", "cp": 2, "step_offload": True, "recompute": "full", "lora_rank": 16}),
    ("megatron", {"engine": "megatron", "recompute": "none", "optimizer_offload": True, "temperature": 0.7}),
]


@pytest.mark.parametrize("engine, changes", CHANGES)
def test_every_change_that_is_named_is_read_back(stock_config, engine, changes):
    words = ["actor_rollout_ref.model.path=qwen2.5-7b", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
    planned, _ = planned_run_from_config(stock_config(*words, *overrides(changes, engine)), A100)
    assert {name: getattr(planned, name) for name in changes} == changes


SPARSE = find_model("Qwen/Qwen3-235B-A22B")
DOES_NOT_FIT = [
    {"gpus_per_node": 4},
    {"gpus_per_node": 1},
    {"utilization": 0.9},
    {"utilization": 0.3},
    {"dynamic_batch": False, "micro_rows": 32, "log_prob_micro_rows": 32},
    {"engine": "megatron", "recompute": "none", "tp": 2},
    {"model": find_model("Qwen/Qwen2.5-72B"), "nodes": 4},
    {"model": SPARSE, "gpu": H100, "engine": "megatron", "nodes": 8, "tp": 4, "ep": 8, "etp": 1},
]


@pytest.mark.parametrize("changes", DOES_NOT_FIT)
def test_advice_fits_and_nothing_of_it_can_be_left_out(changes):
    planned = PlannedRun(**FSDP | changes)
    assert excess(planned, ASSUMED) > 0 and shortfall(planned, ASSUMED)
    advice = advise(planned, ASSUMED)
    assert advice.fits and excess(replace(planned, **advice.changes), ASSUMED) == 0
    for field in advice.changes:
        rest = {name: value for name, value in advice.changes.items() if name != field}
        try:
            without = replace(planned, **rest)
        except ValueError:
            continue
        pairs = {"tokens_per_gpu": "log_prob_tokens_per_gpu", "micro_rows": "log_prob_micro_rows"}
        if field not in (*pairs, *pairs.values()):  # they are changed together
            assert excess(without, ASSUMED) > 0, field
    left = [trial.excess for trial in advice.tried if trial.kept]
    assert left == sorted(left, reverse=True)


def test_advice_says_when_nothing_helps():
    """470 GB of rollout weights do not fit into the 8 x 40 GB of a node, whatever training does."""
    advice = advise(PlannedRun(model=SPARSE, gpu=A100, nodes=8), ASSUMED)
    assert not advice.fits and len(advice.tried) > 5
    done = run("--model", "Qwen3-235B-A22B", "--gpu", "A100-40", "--nodes", 8)
    assert done.exit_code == 1 and "Nothing that was tried makes it fit" in done.output
    table, remains = done.output.split("What remains:")
    assert all(" more " in line or "need" in line for line in remains.strip().splitlines()[:2])
    assert {word.split(":")[0] for word in remains.split("  ") if ":" in word} == {
        phase.name for phase in phases(advice.run, ASSUMED) if not phase.fits
    }
    rows = [row.split("│")[1] for row in table.split("kept ┃")[1].splitlines() if row.startswith("│")]
    settings = [row.split("=")[0].strip() for row in rows if "=" in row]
    assert settings.count("rollout.tensor_model_parallel_size") == settings.count("trainer.nnodes") == 1
    assert settings.count("rollout.gpu_memory_utilization") == 1


REFUSED = [
    (
        "--recipe scale_70b_megatron {tp_}sze=4",
        "is not a setting of the host with model_engine=megatron; nearest: {tp_}size",
    ),
    ("--recipe math_7b {tp_}size=4", "{tp_}size belongs to model_engine=megatron; this run has model_engine=dp"),
    ("--recipe math_7b data.preference.batch_size=4", "use +data.preference.batch_size=4"),
    ("--recipe math_7b nosuch.thing=4", "nosuch.thing is not a setting of the host with model_engine=dp"),
    ("--recipe no_such", "no_such is not known; choose among async_7b, cpu, "),
    ("--recipe [math_7b,no_such]", "no_such is not known; choose among async_7b, cpu, "),
    ("--recipe scale_70b_megatron +{tp_}sze=4", "nearest: {tp_}size"),
    ("--recipe scale_70b_megatron --engine fsdp2", "--engine fsdp2 contradicts --recipe scale_70b_megatron"),
    ("--recipe math_7b --engine megatron", "--engine megatron contradicts --recipe math_7b, which trains with fsdp2"),
    ("--recipe math_7b model_engine=megatron", "strategy=fsdp2 contradicts model_engine=megatron"),
    ("--recipe math_7b --engine deepspeed", "--engine deepspeed is not one of fsdp, fsdp2, megatron"),
    ("--model qwen2.5-7b model_engine=veomni", "model_engine=veomni is not planned"),
    ("--recipe scale_70b_megatron --sp 2", "--sp belongs to FSDP, and megatron trains here; its own are --tp,"),
    ("--recipe math_7b --tp 2", "--tp belongs to Megatron, and fsdp2 trains here; its own are --sp, --fsdp-size,"),
    ("--model qwen2.5-7b --engine megatron --dtype bf16", "--dtype belongs to FSDP"),
    ("--recipe rlvr", "--recipe rlvr names no model; add --model"),
    ("--recipe quickstart", "--recipe quickstart names no model; add --model"),
    ("trainer.nnodes=1", "this configuration names no model; add --model"),
    ("--recipe math_7b +actor_rollout_ref.actor.policy_loss.f_divergence.lamda=0.5", "f_divergence.lamda is not known"),
    (
        "--recipe math_7b --lam 0.5",
        "f_divergence.lam=0.5 needs preference data",
    ),
    ("--recipe safety --lam 1", "reward.reward_model.enable=true with lam=1 contradicts"),
    ("--recipe safety +data.preference.nosuch=4", "data.preference.nosuch is not known"),
    ("--recipe safety --preference-rows 100", "preference rows 100 must be a multiple of 16"),
    ("--recipe math_7b algorithm.adv_estimator=grpo", "asks for f-GRPO but algorithm.adv_estimator=grpo"),
    ("--recipe math_7b --n 1", "a group needs at least 2 answers a prompt"),
]


@pytest.mark.parametrize("words, said", REFUSED)
def test_what_the_host_would_not_run_is_refused_in_one_sentence(words, said):
    at = {"tp_": "actor_rollout_ref.actor.megatron.tensor_model_parallel_"}
    done = run("--gpu", "H100", *words.format(**at).split())
    assert done.exit_code == 2 and not isinstance(done.exception, (ValueError, TypeError))
    assert said.format(**at) in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_preference_data_that_are_not_there_are_a_note(tmp_path):
    def notes(*words):
        return json.loads(run("--gpu", "H100", "--json", *words).output)["notes"]

    words = ("--recipe", "scale_70b_megatron", "algorithm.adv_estimator=f_hal")
    assert any("data.preference.files is empty" in note for note in notes(*words))
    there = tmp_path / "pairs.jsonl"
    there.touch()
    assert not notes(*words, f"+data.preference.files=[{there}]")
    (note,) = notes(*words, f"+data.preference.files=[{there},{tmp_path}/none.jsonl]")
    assert "none.jsonl is not on this machine" in note


def test_an_unknown_group_is_answered_with_every_group():
    said = run("--gpu", "H100", "--recipe", "no_such").stderr
    groups = [file.stem for file in (ROOT / "fgrpo_plugin" / "conf" / "fgrpo").glob("*.yaml")]
    assert set(said.strip().rstrip(".").split("among ")[1].split(", ")) == set(groups)


def test_an_engine_that_a_group_leaves_open_can_be_chosen():
    words = "--recipe rlvr --engine megatron --model qwen2.5-7b --tp 2 --gpu H200 --json"
    plan = json.loads(run(*words.split()).output)
    command = [word for word in plan["command"].split() if "=" in word]
    chosen = ["model_engine=megatron", "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B"]
    assert command[:3] == ["+fgrpo=rlvr", *chosen]
    plan = json.loads(run(*["--recipe", "math_7b", "--engine", "fsdp", "--gpu", "H100", "--json"]).output)
    assert plan["command"].endswith("actor_rollout_ref.actor.strategy=fsdp")


def test_the_command_names_the_model_as_the_host_finds_it(tmp_path):
    def path(model):
        plan = json.loads(run("--recipe", "math_7b", "--gpu", "H100", "--model", model, "--json").output)
        return plan["command"].split("model.path=")[1].split()[0]

    assert path("QWEN2.5-7b") == "Qwen/Qwen2.5-7B"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(known_models()["Qwen/Qwen2.5-7B"]["config"]))
    assert path(tmp_path) == path(file) == str(tmp_path)


def test_a_setting_is_once_in_the_command():
    words = ("--recipe", "math_7b", "--gpu", "RTX4090", "--json", "--tokens-per-gpu", 32768)
    utilization = "actor_rollout_ref.rollout.gpu_memory_utilization"
    plan = json.loads(run(*words, f"{utilization}=0.95").output)
    assert plan["advice"]["fits"]
    names = [word.split("=")[0] for word in plan["command"].split() if "=" in word]
    assert utilization in names and len(set(names)) == len(names)


def test_a_recipe_that_fits_ends_in_its_command():
    done = run("--recipe", "math_7b", "--gpu", "H100", "--gpus", 4, "data.max_response_length=2048")
    assert done.exit_code == 0, done.output
    command = done.output.split("Command:")[1].split()
    expected = ["+fgrpo=math_7b", "data.max_response_length=2048", "trainer.n_gpus_per_node=4"]
    assert [word for word in command if "=" in word] == expected
    for said in (
        "memory of one GPU",
        "rollout weights",
        "generation",
        "resharding, at least",
        "tokens/s",
        "prediction",
    ):
        assert said in done.output


def test_the_command_of_a_recipe_that_does_not_fit_holds_the_advice_and_fits(stock_config):
    words = ("--recipe", "safety", "--gpu", "RTX4090", "--json")
    done = run(*words)
    assert done.exit_code == 1, done.output
    plan = json.loads(done.output)
    assert not plan["fits"] and plan["advice"]["fits"] and plan["advice"]["overrides"]
    command = [word for word in plan["command"].split() if "=" in word]
    assert command == ["+fgrpo=safety", *plan["advice"]["overrides"]]
    planned, _ = planned_run_from_config(stock_config(*command), find_gpu("RTX4090"))
    assert excess(planned, ASSUMED) == 0


def test_the_command_can_be_pasted_into_a_shell():
    words = ["+fgrpo=[math_7b,data_limr]", "algorithm.adv_estimator=f_hal", "+data.preference.batch_size=64"]
    lam = "+actor_rollout_ref.actor.policy_loss.f_divergence.lam={schedule:cosine,start:0.8,end:0.2}"
    plan = json.loads(run("--gpu", "H100", "--json", *words, lam).output)
    assert shlex.split(plan["command"].replace("\\\n", " "))[3:] == [*words, lam]
    assert plan["command"].count("'") == 4, "nothing is quoted without need"


def test_options_alone_say_what_a_command_needs():
    done = run("--gpu", "H100", "--model", "qwen2.5-7b")
    assert "main_ppo" not in done.output
    assert "Name a --recipe, or overrides of the host" in " ".join(done.output.split())


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


def test_a_measured_machine_is_a_gpu(tmp_path):
    import psutil

    file = tmp_path / "machine.yaml"
    assert run("--measure-cpu", file).exit_code == 0
    machine = find_gpu(str(file))
    assert machine.memory_gib == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.01)
    assert 1e-4 < machine.tflops < 50 and 0.1 < machine.bandwidth_gb < 2000
    plan = json.loads(run("--model", "qwen2.5-0.5b", "--gpu", file, "--gpus", 1, "--json").output)
    assert plan["gpu"]["name"] == "cpu"


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
