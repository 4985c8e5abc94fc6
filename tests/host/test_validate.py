"""The one switch: what it fills in, and what it refuses in which words."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.contract import VALIDATED
from fgrpo_plugin.host.settings.switch import complete

SWITCH = "algorithm.adv_estimator=f_grpo"
MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
REFERENCE = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"
ASYNC = [
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=8",
]
STATIC = ["actor_rollout_ref.actor.use_dynamic_bsz=false"]
F = "+actor_rollout_ref.actor.policy_loss.f_divergence"


def test_the_switch_alone_fills_in_the_rest(stock_config, inputs, capsys):
    config = stock_config(*inputs, SWITCH)
    complete(config)
    loss = config.actor_rollout_ref.actor.policy_loss
    assert loss.loss_mode == "f_grpo"
    assert loss._target_.endswith("FDivergencePolicyLossConfig")
    assert config.algorithm.rollout_correction.bypass_mode is True
    assert config.algorithm[VALIDATED] is True
    assert loss.f_divergence.divergence == "pearson" and loss.f_divergence.gamma == 0.0
    printed = capsys.readouterr().out
    shims = "config_hook applied, policy_loss_fields applied, reference_policy applied, trainer_mode applied"
    for key in (f"shims: {shims}", "loss_mode=f_grpo", "bypass_mode=True", "divergence=pearson", "shuffle: refused"):
        assert key in printed


def test_the_completed_section_becomes_the_typed_config_on_both_paths_of_the_host(stock_config, inputs):
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = stock_config(*inputs, SWITCH, f"{F}.divergence=kl", f"{F}.beta=0.2")
    complete(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert type(actor.policy_loss).__name__ == "FDivergencePolicyLossConfig"
    assert actor.policy_loss.f_divergence.beta == 0.2
    assert actor.policy_loss.f_divergence.build_divergence().name == "kl"
    from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig

    structured = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss, FDivergencePolicyLossConfig)
    assert structured.f_divergence.divergence == "kl"
    validate_config(config, use_reference_policy=True, use_critic=False)


def test_reference_policy_is_on_for_us_and_untouched_for_others(stock_config, inputs):
    from verl.trainer.ppo.utils import need_reference_policy

    config = stock_config(*inputs, SWITCH)
    with pytest.raises(ValueError, match="without validation"):
        need_reference_policy(config)
    complete(config)
    assert need_reference_policy(config) is True
    assert not need_reference_policy(stock_config(*inputs, "algorithm.adv_estimator=grpo"))
    assert need_reference_policy(stock_config(*inputs, "actor_rollout_ref.actor.use_kl_loss=true"))


@pytest.mark.parametrize(
    "overrides, bypass, source",
    [
        ([], True, "current"),
        ([f"{F}.preset=released", "data.train_batch_size=256"], True, "current"),
        ([f"{F}.preset=released", "data.train_batch_size=512"], False, "recomputed"),
        ([f"{F}.gamma=0.5", *ASYNC], False, "recomputed"),
        ([f"{F}.gamma=0.5", "actor_rollout_ref.actor.ppo_epochs=2", "data.train_batch_size=256"], False, "recomputed"),
    ],
)
def test_the_old_log_prob_pass_is_made_only_where_it_is_needed(stock_config, inputs, overrides, bypass, source):
    config = stock_config(*inputs, "data.train_batch_size=256", SWITCH, *overrides)
    complete(config)
    assert config.algorithm.rollout_correction.bypass_mode is bypass
    if not bypass or "released" in str(overrides):
        assert config.actor_rollout_ref.actor.policy_loss.f_divergence.old_log_prob == source


@pytest.mark.parametrize(
    "overrides, said, on_policy, preference",
    [
        ([], False, "10", "0"),
        ([f"{F}.preset=stable", f"{F}.beta=0.5"], False, "2", "0"),
        ([f"{F}.preset=paper"], True, "11", "0"),
        ([f"{F}.preset=released"], True, "1", "0"),
        ([f"{F}.preset=released", f"{F}.gamma=0.4", f"{F}.beta=0.6"], True, "1.6", "0"),
        (["f_hal", f"{F}.preset=paper", f"{F}.lam=0.25"], True, "8.25", "0.25"),
        (["f_hal", f"{F}.lam=0.75"], False, "2.5", "7.5"),
        ([f"{F}.scale=paper"], "multiplies the on-policy loss", "11", "0"),
        (
            ["f_hal", f"{F}.preset=paper", f"{F}.lam={{schedule: linear, start: 0.5, end: 0.1}}"],
            True,
            "(1 - lambda) x 11",
            "lambda x 1",
        ),
    ],
)
def test_the_report_says_what_a_preset_is_now_and_calls_the_coefficients_nominal(
    stock_config, inputs, preferences, capsys, overrides, said, on_policy, preference
):
    switch = [SWITCH]
    if "f_hal" in overrides:
        switch = ["algorithm.adv_estimator=f_hal", preferences]
        overrides = overrides[1:]
    complete(stock_config(*inputs, *switch, *overrides))
    lines = capsys.readouterr().out.splitlines()
    about = [line for line in lines if "since 0.2.0" in line]
    assert len(about) == bool(said)
    if said is True:
        assert "the former preset=paper is stable, the former released is stable with gamma=1" in about[0]
    elif said:
        assert said in about[0]
    (nominal,) = [line for line in lines if "nominal" in line]
    assert f"on-policy loss {on_policy}, preference loss {preference};" in nominal
    assert "on_policy_slope" in nominal


def test_the_settings_of_a_preset_are_what_the_workers_get(stock_config, inputs):
    config = stock_config(*inputs, SWITCH, f"{F}.preset=paper", f"{F}.weight_level=token_mean")
    complete(config)
    found = config.actor_rollout_ref.actor.policy_loss.f_divergence
    assert (found.gamma, found.scale, found.weight_scale, found.weight_level) == (0.0, "paper", "group", "token_mean")


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["trainer.use_v1=false"], "trainer.use_v1=false"),
        (["algorithm.use_kl_in_reward=true"], "algorithm.use_kl_in_reward=true"),
        (["actor_rollout_ref.rollout.n=1"], "rollout.n=1"),
        (
            ["actor_rollout_ref.actor.ppo_mini_batch_size=27"],
            "makes 108 rows, no multiple of the 8 data-parallel ranks",
        ),
        (["model_engine=torchtitan"], "choose one of dp, megatron, veomni"),
        (
            [*STATIC, f"{MICRO}=3"],
            "ppo_mini_batch_size x actor_rollout_ref.rollout.n makes 1024 rows on 8 data-parallel",
        ),
        ([f"{REFERENCE}=48", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"], "ref.log_prob_micro_batch_size"),
        (["actor_rollout_ref.actor.shuffle=true"], "shuffle=true"),
        (["algorithm.rollout_correction.rollout_is=token"], "rollout_is"),
        (["critic.enable=true"], "critic.enable=true"),
        (["distillation.enabled=true"], "distillation.enabled=true"),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=gspo"], "loss_mode=gspo"),
        ([f"{F}.beta=0"], "f_divergence.beta=0"),
        ([f"{F}.beta=-1"], "f_divergence.beta=-1"),
        ([f"{F}.lam=1.5"], "f_divergence.lam=1.5"),
        ([f"{F}.lam=0.5"], "preference data"),
        ([f"{F}.divergence=nope"], "nope"),
        ([f"{F}.link=nope"], "nope"),
        ([f"{F}.alpha=2"], "alpha"),
        ([f"{F}.level=word"], "level='word'"),
        ([f"{F}.betta=0.1"], "f_divergence.betta"),
        ([f"{F}.weight_cap=0.5"], "weight_cap=0.5"),
        ([f"{F}.scale=big"], "scale='big'"),
        ([f"{F}.weight_scale=row"], "weight_scale='row'"),
        ([f"{F}.preset=paper", f"{F}.weight_cap=2"], "weight_cap=2 with weight_scale=group"),
        ([f"{F}.preset=mine"], "preset='mine'"),
        (["data.train_files=/nowhere/rows.parquet"], "data.train_files=/nowhere/rows.parquet"),
        (["data.prompt_key=question"], "column question is missing"),
        (["actor_rollout_ref.model.path=/nowhere/model"], "actor_rollout_ref.model.path=/nowhere/model"),
        (["actor_rollout_ref.model.path='~/model'"], "write the folder's full path"),
        (["+actor_rollout_ref.actor.fsdp_config.router_replay.mode=R3"], "router_replay.mode"),
        (["algorithm.adv_estimator=f_hal"], "data.preference.files is empty"),
    ],
)
def test_contradictions_are_refused_by_name(stock_config, inputs, overrides, words):
    config = stock_config(*inputs, SWITCH, *overrides)
    with pytest.raises(ValueError) as error:
        complete(config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_tokenizer_is_refused(stock_config, inputs, tmp_path):
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        complete(stock_config(*inputs, SWITCH))


def test_our_loss_without_our_estimator_is_refused(stock_config, inputs):
    config = stock_config(*inputs, "algorithm.adv_estimator=grpo", f"{F}.beta=0.1")
    with pytest.raises(ValueError, match=r"set algorithm\.adv_estimator=f_grpo"):
        complete(config)


def test_the_real_entry_point_ends_in_one_sentence_before_ray(inputs, tmp_path):
    refused = ["algorithm.use_kl_in_reward=true", "hydra.run.dir=.", "hydra.output_subdir=null"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *inputs, SWITCH, *refused]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fgrpo-plugin: algorithm.use_kl_in_reward=true contradicts")
    assert "Traceback" not in done.stderr and "ray init" not in done.stdout


def test_another_entry_point_is_refused(inputs, tmp_path):
    script = tmp_path / "main_other.py"
    script.write_text(
        "import sys\n"
        "from hydra import compose, initialize_config_module\n"
        "from verl.utils.device import auto_set_device\n"
        "with initialize_config_module('verl.trainer.config', version_base=None):\n"
        "    config = compose('ppo_trainer', sys.argv[1:])\n"
        "auto_set_device(config)\n"
    )
    done = subprocess.run([sys.executable, str(script), *inputs, SWITCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "verl.trainer.main_ppo alone, not main_other.py" in done.stderr.strip().splitlines()[-1]


def test_the_estimator_refuses_an_unvalidated_configuration():
    import torch

    from fgrpo_plugin.host.driver.advantage import f_grpo_advantage

    rewards, mask = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match="only entry point"):
        f_grpo_advantage(rewards, mask, OmegaConf.create({}), ["a", "a"])


def test_remote_files_patterns_and_hub_names_are_left_to_the_host(stock_config, inputs):
    files = [
        "data.train_files=['hdfs://cluster/rows.parquet','part-*.parquet']",
        "data.val_files=s3://bucket/rows.parquet",
    ]
    complete(stock_config(*inputs[2:], SWITCH, *files, "actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-1.5B"))


HAL = "algorithm.adv_estimator=f_hal"


@pytest.fixture
def preferences(tmp_path):
    """As many pairs as the stock batch takes of each side, as an override."""
    import json

    file = tmp_path / "prefs.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": str(i), "chosen": f"a{i}", "rejected": f"b{i}"}) + "\n" for i in range(512))
    )
    return f"+data.preference.files=[{file}]"


def test_f_hal_fills_in_its_loss_and_half_of_lambda(stock_config, inputs, preferences, capsys):
    from verl.utils.config import omega_conf_to_dataclass

    from fgrpo_plugin.host.settings.questions import is_offline, joins_preferences

    config = stock_config(*inputs, HAL, preferences)
    complete(config)
    loss = config.actor_rollout_ref.actor.policy_loss
    assert loss.loss_mode == "f_hal" and loss.f_divergence.lam == 0.5
    assert joins_preferences(config) and not is_offline(config)
    assert "algorithm.adv_estimator=f_hal set" in capsys.readouterr().out
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss.f_divergence.lam == 0.5


def test_lambda_zero_throughout_is_the_f_grpo_path_and_reads_no_preferences(stock_config, inputs):
    from fgrpo_plugin.host.settings.questions import joins_preferences

    config = stock_config(*inputs, HAL, f"{F}.lam=0", "+data.preference.files=[/nowhere/prefs.jsonl]")
    complete(config)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "f_grpo" and not joins_preferences(config)


def test_a_schedule_keeps_both_halves_whatever_its_values(stock_config, inputs, preferences):
    from fgrpo_plugin.host.settings.questions import is_offline, joins_preferences

    schedule = f"{F}.lam={{schedule: linear, start: 0, end: 1}}"
    config = stock_config(*inputs, HAL, preferences, schedule)
    complete(config)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "f_hal"
    assert joins_preferences(config) and not is_offline(config)


def test_lambda_one_needs_neither_prompts_nor_groups_nor_a_rollout_engine(stock_config, inputs, preferences):
    from verl.utils.dataset.rl_dataset import get_dataset_class
    from verl.utils.import_utils import load_class_from_fqn

    from fgrpo_plugin.host.driver.offline import NoPrompts, NoRollouts
    from fgrpo_plugin.host.settings.questions import is_offline

    offline = [HAL, preferences, f"{F}.lam=1.0", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    config = stock_config(
        *inputs, *offline, "data.train_files=/nowhere.parquet", "data.val_files=null", "actor_rollout_ref.rollout.n=1"
    )
    complete(config)
    assert is_offline(config)
    assert get_dataset_class(config.data) is NoPrompts
    manager = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert load_class_from_fqn(manager, "AgentLoopManager") is NoRollouts
    kept = stock_config(*inputs, *offline, "+data.preference.keep_rollout=true")
    complete(kept)
    assert kept.data.custom_cls.path is None


def test_the_trainer_of_lambda_one_asks_for_no_rollout_engine(stock_config, inputs, preferences):
    from verl.trainer.ppo.v1 import get_trainer_cls

    from fgrpo_plugin.host.driver.offline import OfflineTrainer

    def trainer_of(*overrides):
        config = stock_config(*inputs, preferences, *overrides, "trainer.val_before_train=false")
        complete(config)
        trainer = get_trainer_cls("sync").__new__(get_trainer_cls("sync"), config)
        trainer.config = config
        return trainer

    lone = trainer_of(HAL, f"{F}.lam=1")
    assert isinstance(lone, OfflineTrainer) and lone._enable_hybrid_replicas is False
    assert trainer_of(HAL, f"{F}.lam=1", "+data.preference.keep_rollout=true")._enable_hybrid_replicas is True
    assert not isinstance(trainer_of(HAL), OfflineTrainer)


LAM_ONE = f"{F}.lam=1"


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["+data.preference.files=[/nowhere/prefs.jsonl]"], "/nowhere/prefs.jsonl: cannot be read"),
        (["+data.preference.file=x"], "data.preference.file is not known"),
        (["+data.preference.batch_size=7"], "data.preference.batch_size=7 must be a multiple of 16"),
        (["+data.preference.batch_size=7", "trainer.n_gpus_per_node=1"], "must be a multiple of 2"),
        (
            [
                "+data.preference.batch_size=16",
                "actor_rollout_ref.actor.use_dynamic_bsz=false",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=16",
            ],
            "data.preference.batch_size=16 makes 80 rows on 8 data-parallel ranks, no multiple of",
        ),
        ([f"{F}.lam=2"], "lam=2 must lie in [0, 1]"),
        ([f"{F}.preference_gamma=-1"], "preference_gamma=-1"),
        ([f"{F}.preference_gamma=1", "actor_rollout_ref.actor.ppo_epochs=2"], "takes the current policy for pi_old"),
        (["algorithm.adv_estimator=f_grpo", f"{F}.lam=0.5"], "set algorithm.adv_estimator=f_hal, or remove lam"),
        ([LAM_ONE, "trainer.v1.trainer_mode=separate_async"], "trainer.v1.trainer_mode=separate_async with lam=1"),
        ([LAM_ONE, "trainer.v1.trainer_mode=colocate_async"], "trainer.v1.trainer_mode=colocate_async with lam=1"),
        ([LAM_ONE], "name them in data.preference.val_files"),
        ([LAM_ONE, "actor_rollout_ref.actor.entropy_coeff=0.1"], "they see on-policy rows only"),
        ([LAM_ONE, "actor_rollout_ref.actor.use_kl_loss=true"], "they see on-policy rows only"),
        ([LAM_ONE, "reward.reward_model.enable=true"], "nothing is rewarded"),
        ([LAM_ONE, "trainer.rollout_data_dir=x"], "trainer.rollout_data_dir with lam=1"),
        ([LAM_ONE, "data.train_batch_size=300"], "make it a multiple of 256"),
        (["algorithm.use_kl_in_reward=true"], "contradicts algorithm.adv_estimator=f_hal"),
        (["algorithm.adv_estimator=f_grpo"], "which algorithm.adv_estimator=f_grpo does not read"),
        (["+data.preference.batch_size=2048"], "(512 on the scarcer side); set it to 1024 or less"),
        (["+data.preference.val_files=[ONE_SIDE]"], "data.preference.val_files hold one side alone"),
    ],
)
def test_what_f_hal_refuses_is_named(stock_config, inputs, preferences, tmp_path, overrides, words):
    one_side = tmp_path / "one_side.jsonl"
    one_side.write_text('{"prompt": "p", "completion": "a", "label": true}\n')
    overrides = [override.replace("ONE_SIDE", str(one_side)) for override in overrides]
    given = [] if any("preference.files" in item for item in overrides) else [preferences]
    config = stock_config(*inputs, HAL, *given, *overrides)
    with pytest.raises(ValueError) as error:
        complete(config)
    assert words in str(error.value)


def test_a_bad_preference_row_ends_the_run_before_ray_unless_it_is_skipped(stock_config, inputs, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a", "rejected": "a"}\n'
    )
    config = stock_config(*inputs, HAL, f"+data.preference.files=[{file}]")
    with pytest.raises(ValueError, match=r"row 1: chosen and rejected are the same"):
        complete(config)
    small = ["+data.preference.batch_size=2", "trainer.n_gpus_per_node=1"]
    complete(stock_config(*inputs, HAL, f"+data.preference.files=[{file}]", "+data.preference.on_bad_row=skip", *small))


def test_micro_batches_that_divide_each_ranks_rows_are_taken(stock_config, inputs):
    """And a batch that is no whole number of mini-batches, which the host fills up before its log-prob passes."""
    for overrides in (
        [*STATIC, f"{MICRO}=4", f"{REFERENCE}=8", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"],
        ["data.train_batch_size=300", f"{REFERENCE}=128", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"],
    ):
        complete(stock_config(*inputs, SWITCH, *overrides))


def test_the_group_for_a_cpu_needs_the_platform(stock_config, inputs, monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM")
    with pytest.raises(ValueError, match=r"trainer.device=cpu without VERL_PLATFORM=cpu .* set VERL_PLATFORM=cpu"):
        complete(stock_config(*inputs, "+fgrpo=cpu", SWITCH))
