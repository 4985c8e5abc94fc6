"""The report's command is one that verl takes."""

import json
import shlex

import pytest

from fgrpo_plugin.host.settings.compose import compose
from fgrpo_plugin.model_shape import known_models
from fgrpo_plugin.plan.advice import excess
from fgrpo_plugin.plan.compose import check_run
from fgrpo_plugin.plan.configuration import planned_run_from_config
from fgrpo_plugin.plan.gpus import find_gpu
from tests.plan.planning import ASSUMED, run


def test_the_command_names_the_model_as_the_host_finds_it(tmp_path):
    def path(model):
        plan = json.loads(run("--recipe", "math_7b", "--gpu", "H100", "--model", model, "--json").stdout)
        return plan["command"].split("model.path=")[1].split()[0]

    assert path("QWEN2.5-7b") == "Qwen/Qwen2.5-7B"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(known_models()["Qwen/Qwen2.5-7B"]["config"]))
    assert path(tmp_path) == path(file) == str(tmp_path)


def test_a_setting_is_once_in_the_command():
    words = ("--recipe", "math_7b", "--gpu", "RTX4090", "--json", "--tokens-per-gpu", 32768)
    utilization = "actor_rollout_ref.rollout.gpu_memory_utilization"
    plan = json.loads(run(*words, f"{utilization}=0.95").stdout)
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
    plan = json.loads(done.stdout)
    assert not plan["fits"] and plan["advice"]["fits"] and plan["advice"]["overrides"]
    command = [word for word in plan["command"].split() if "=" in word]
    assert command == ["+fgrpo=safety", *plan["advice"]["overrides"]]
    planned, _ = planned_run_from_config(stock_config(*command), find_gpu("RTX4090"))
    assert excess(planned, ASSUMED) == 0


def test_the_command_can_be_pasted_into_a_shell():
    words = ["+fgrpo=[math_7b,data_limr]", "algorithm.adv_estimator=f_hal", "+data.preference.batch_size=64"]
    lam = "+actor_rollout_ref.actor.policy_loss.f_divergence.lam={schedule:cosine,start:0.8,end:0.2}"
    plan = json.loads(run("--gpu", "H100", "--json", *words, lam).stdout)
    assert shlex.split(plan["command"].replace("\\\n", " "))[3:] == [*words, lam]
    assert plan["command"].count("'") == 4, "nothing is quoted without need"


def test_memory_at_the_mean_length_stands_beside_that_at_the_longest():
    fixed = [
        f"actor_rollout_ref.{at}_micro_batch_size_per_gpu=8" for at in ("actor.ppo", "rollout.log_prob", "ref.log_prob")
    ]
    words = ("--model", "qwen2.5-7b", "--gpu", "H200", "actor_rollout_ref.actor.use_dynamic_bsz=false", *fixed)
    plan = json.loads(run(*words, "--mean-response", 256, "--json").stdout)
    mean = json.loads(run(*words, "data.max_response_length=256", "--json").stdout)
    for phase, other in zip(plan["phases"], mean["phases"], strict=True):
        assert phase["total_at_mean_lengths"] == other["total"] <= phase["total"]
    assert plan["phases"][2]["total_at_mean_lengths"] < plan["phases"][2]["total"]
    assert "at mean lengths" in run(*words, "--mean-response", 256).stdout
    assert "at mean lengths" not in run(*words).stdout


def test_host_memory_stands_beside_a_nodes():
    words = ("--model", "qwen2.5-7b", "--gpu", "H100", "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true")
    plan = json.loads(run(*words, "--json").stdout)
    parameters = plan["model"]["parameters"]
    assert plan["host_bytes_per_node"] == pytest.approx((8 + 4) * parameters)  # two moments, and the reference
    assert plan["host_memory_per_node"] == 1024 * 2**30 and plan["fits"]
    small = run(*words, "--assume", "node_memory_gib=64")
    assert small.exit_code == 1 and "DOES NOT FIT" in small.stdout and "has 64." in small.stdout


@pytest.mark.parametrize("minibatch, steps, filling", [(48, 2, 128), (100, 1, 144), (64, 1, 0)])
def test_mini_batches_that_do_not_divide_a_batch_are_planned_as_verl_fills_them(minibatch, steps, filling):
    words = ("data.train_batch_size=64", f"actor_rollout_ref.actor.ppo_mini_batch_size={minibatch}")
    plan = json.loads(run("--model", "qwen2.5-7b", "--gpu", "H100", "--json", *words).stdout)
    assert (plan["optimizer_steps"], plan["filling_rows"]) == (steps, filling)


@pytest.mark.parametrize(
    "card, recipe",
    [
        ("RTX 4090", "safety"),
        ("A10", "safety"),
        ("RTX 4090", "async_7b"),
        ("L40S", "async_7b"),
        ("A100", "scale_32b_megatron"),
    ],
)
def test_an_advised_command_passes_the_checks_of_the_run(card, recipe):
    plan = json.loads(run("--recipe", recipe, "--gpu", card, "--json", "trainer.nnodes=1").stdout)
    assert not plan["fits"]
    if plan["advice"]["fits"]:
        check_run(compose(shlex.split(plan["command"].replace("\\\n", " "))[3:]))
