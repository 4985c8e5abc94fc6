"""The report's command is one that verl takes."""

import json
import shlex

from fgrpo_plugin.model_shape import known_models
from fgrpo_plugin.plan.advice import excess
from fgrpo_plugin.plan.configuration import planned_run_from_config
from fgrpo_plugin.plan.gpus import find_gpu
from tests.plan.planning import ASSUMED, run


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
