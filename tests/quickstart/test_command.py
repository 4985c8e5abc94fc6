"""verl's command line, and the check of overrides before the warm-up."""

import json
from pathlib import Path

import pytest

from fgrpo_plugin.host.settings.compose import compose
from fgrpo_plugin.quickstart.command import host_command
from fgrpo_plugin.quickstart.inputs import RunInputs, hybrid_inputs
from fgrpo_plugin.quickstart.options import QuickstartError, QuickstartOptions
from fgrpo_plugin.quickstart.run import run_quickstart


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actor_rollout_ref.rollout.n=1", "a group needs at least 2 responses"),
        ("actor_rollout_ref.rollout.nn=4", "nn"),
    ],
)
def test_an_override_is_refused_before_the_warm_up(tmp_path, override, words):
    with pytest.raises(QuickstartError, match="--override: ") as error:
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", overrides=(override,)))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_of_the_users_own_gets_careful_settings_and_the_quick_starts_own_does_not(tmp_path):
    inputs = RunInputs(tmp_path, tmp_path / "a.parquet", tmp_path / "b.parquet", ())
    for config, careful in (({}, True), ({"fgrpo_quickstart": True}, False)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        command = host_command(tmp_path, QuickstartOptions(model=tmp_path), 7, inputs, tmp_path)
        assert ("actor_rollout_ref.actor.optim.lr=1e-06" in command) == careful
        assert ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8" in command) == careful
    (tmp_path / "config.json").write_text("{}")
    chosen = host_command(tmp_path, QuickstartOptions(model=tmp_path, learning_rate=1e-5), 7, inputs, tmp_path)
    assert [word for word in chosen if "optim.lr=" in word][-1].endswith("=1e-05")  # the last one counts


@pytest.mark.parametrize("name", ["plain", "two words", "a,b", "a(b)=[c]{d}", "it's", "Jürgen", "a@b#c~d"])
def test_a_folder_of_any_name_reaches_verl_as_it_is(tmp_path, name):
    run = tmp_path / name
    inputs = RunInputs(run / "model", run / "train.parquet", run / "heldout.parquet", ())
    command = host_command(run, QuickstartOptions(), 7, inputs, Path("/tmp/ray"))
    config = compose([word for word in command[3:] if not word.startswith("hydra.")])
    assert (config.data.train_files, config.data.val_files) == (str(inputs.train), str(inputs.heldout))
    assert config.actor_rollout_ref.model.path == str(inputs.model)
    assert config.trainer.default_local_dir == str(run / "checkpoints")


@pytest.mark.parametrize(
    "algo, lam", [("f_grpo", None), ("grpo", None), ("f_hal", None), ("f_hal", 0.0), ("f_hal", 1.0)]
)
def test_the_hosts_command_composes_and_is_valid(stock_config, inputs, tmp_path, algo, lam):
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.settings.reading import is_f_divergence
    from fgrpo_plugin.host.settings.switch import complete

    divergence = None if algo == "grpo" else "kl"
    options = QuickstartOptions(algo=algo, divergence=divergence, lam=lam, seed=3, learning_rate=1e-3)
    options.check()
    data, model = (Path(item.split("=", 1)[1]) for item in (inputs[0], inputs[2]))
    host_inputs = RunInputs(
        model, data, data, ("reward.custom_reward_function.path=pkg://fgrpo_plugin.quickstart.task",)
    )
    if algo == "f_hal":
        host_inputs = hybrid_inputs(tmp_path, model)
    command = host_command(tmp_path, options, 7, host_inputs, tmp_path)
    assert command[1:4] == [
        "-m",
        "verl.trainer.main_ppo",
        f"+fgrpo={'laptop_hybrid' if algo == 'f_hal' else 'quickstart'}",
    ]
    config = stock_config(*[word for word in command[3:] if not word.startswith("hydra.")])
    if is_f_divergence(config):
        complete(config)
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.divergence == "kl"
    validate_config(config, use_reference_policy=algo != "grpo", use_critic=False)
    if algo == "f_hal":
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.lam == (0.5 if lam is None else lam)
    assert config.algorithm.adv_estimator == algo
    assert config.actor_rollout_ref.actor.optim.lr == 1e-3 and config.trainer.total_training_steps == 7
