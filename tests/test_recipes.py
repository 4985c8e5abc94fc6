"""Every documented command line composes against the stock verl and passes its validation and ours."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.settings.compose import unknown_settings
from fgrpo_plugin.preference.config import PreferenceConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "fgrpo_plugin" / "conf" / "fgrpo"
MATH = ["math_1_5b", "math_7b", "[math_7b,data_limr]", "[math_1_5b,data_open_rs]"]
MEGATRON = ["scale_32b_megatron", "scale_70b_megatron", "scale_30b_a3b_megatron"]
ROLLOUT = "actor_rollout_ref.rollout.tensor_model_parallel_size"
FSDP = "actor_rollout_ref.actor.fsdp_config"
SDPA = ["+actor_rollout_ref.model.override_config.attn_implementation=sdpa"]
MCORE = "actor_rollout_ref.actor.megatron"


@pytest.mark.parametrize("group", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_a_group_sets_only_what_the_host_knows(stock_config, group):
    # Hydra checks the keys of a command line against verl's, but not those of a configuration group.
    assert unknown_settings(stock_config(f"+fgrpo={group}")) == []


def test_a_recipe_is_named_as_its_group_and_every_group_is_in_a_recipe_or_a_base():
    """A base is what another group includes. quickstart_megatron is neither: docs/engines.md has how to start it."""
    groups = {file.stem: file.read_text() for file in CONF.glob("*.yaml")}
    pages = {page.parent.name: page.read_text() for page in ROOT.glob("recipes/*/README.md")}
    folders = {folder.name for folder in (ROOT / "recipes").iterdir() if folder.is_dir()}
    assert folders == pages.keys() <= groups.keys()
    bases = {name for text in groups.values() for name in re.findall(r"^  - (\w+)$", text, flags=re.MULTILINE)}
    mentioned = {name for name in groups if any(re.search(rf"\b{name}\b", text) for text in pages.values())}
    assert groups.keys() - bases - mentioned == {"quickstart_megatron"}
    assert "+fgrpo=quickstart_megatron" in (ROOT / "docs" / "engines.md").read_text()


@pytest.mark.parametrize("group", [*MATH, *MEGATRON, "async_7b"])
def test_recipe_composes_and_is_valid(stock_config, inputs, group):
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.settings.switch import complete

    config = stock_config(f"+fgrpo={group}", *inputs[:2])
    assert config.actor_rollout_ref.model.path.startswith("Qwen/Qwen")
    complete(config)
    assert config.algorithm.rollout_correction.bypass_mode is True
    current = "recomputed" if group == "async_7b" else "current"
    assert config.actor_rollout_ref.actor.policy_loss.f_divergence.old_log_prob == current
    # The published tables come from `released`.
    preset = "released" if group in MATH else "stable"
    assert config.actor_rollout_ref.actor.policy_loss.f_divergence.preset == preset
    get_trainer_cls(config.trainer.v1.trainer_mode)
    validate_config(config, use_reference_policy=True, use_critic=False)


@pytest.mark.parametrize(
    "group, parallel, vllm",
    [
        ("scale_32b_megatron", (4, 2, 1, 1, 4), 4),
        ("scale_70b_megatron", (8, 4, 1, 1, 2), 8),
        ("scale_30b_a3b_megatron", (2, 1, 1, 8, 8), 4),
    ],
)
def test_a_megatron_recipe_becomes_the_engine_s_own_configuration(stock_config, inputs, group, parallel, vllm):
    from verl.utils.config import omega_conf_to_dataclass

    from fgrpo_plugin.host.settings.layout import data_parallel_size
    from fgrpo_plugin.host.settings.switch import complete

    config = stock_config(f"+fgrpo={group}", *inputs[:2])
    complete(config)
    roles = config.actor_rollout_ref
    actor, reference = omega_conf_to_dataclass(roles.actor), omega_conf_to_dataclass(roles.ref.megatron)
    sizes = [
        (
            engine.tensor_model_parallel_size,
            engine.pipeline_model_parallel_size,
            engine.context_parallel_size,
            engine.expert_model_parallel_size,
        )
        for engine in (actor.megatron, reference)
    ]
    assert type(actor).__name__ == "McoreActorConfig"
    assert sizes == [parallel[:4]] * 2, "the reference shares the actor's ranks"
    assert data_parallel_size(config) == parallel[4]
    assert reference.use_mbridge and reference.param_offload
    # A vLLM replica lies inside a node, and every prompt's mini-batch falls evenly on the data-parallel ranks.
    assert config.trainer.n_gpus_per_node % roles.rollout.tensor_model_parallel_size == 0
    assert roles.rollout.tensor_model_parallel_size == vllm
    assert roles.actor.ppo_mini_batch_size * roles.rollout.n % parallel[4] == 0
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert roles.actor.ppo_max_token_len_per_gpu >= longest


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["+fgrpo=scale_70b_megatron", "trainer.nnodes=6"], "48 GPUs are no multiple of the model-parallel size 32"),
        (["+fgrpo=scale_30b_a3b_megatron", "trainer.nnodes=1", "trainer.n_gpus_per_node=4"], "expert-parallel size 8"),
        (["+fgrpo=math_7b", "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=3"], "size 3"),
        (
            ["+fgrpo=scale_70b_megatron", f"{ROLLOUT}=3"],
            "64 GPUs that train and generate are no multiple of the 3 of one replica",
        ),
        (
            [
                "+fgrpo=scale_70b_megatron",
                "trainer.n_gpus_per_node=5",
                f"{ROLLOUT}=5",
                f"{MCORE}.tensor_model_parallel_size=5",
            ],
            "rollout.tensor_model_parallel_size=5 does not divide the 64 attention heads",
        ),
        (
            ["+fgrpo=scale_70b_megatron", "trainer.n_gpus_per_node=5", f"{MCORE}.tensor_model_parallel_size=5"],
            "megatron.tensor_model_parallel_size=5 does not divide the 64",
        ),
        (
            ["+fgrpo=scale_70b_megatron", "trainer.nnodes=6", f"{MCORE}.pipeline_model_parallel_size=6"],
            "makes 6 stages of 80 layers",
        ),
        (
            ["+fgrpo=scale_70b_megatron", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096"],
            "does not hold the longest row, .* = 9216, on 1 rank",
        ),
        (
            ["+fgrpo=scale_70b_megatron", "actor_rollout_ref.actor.strategy=fsdp2"],
            "strategy=fsdp2 with model_engine=megatron",
        ),
        (["+fgrpo=math_7b", "model_engine=megatron"], "strategy=fsdp2 with model_engine=megatron"),
        (
            ["+fgrpo=math_7b", *SDPA, f"{FSDP}.ulysses_sequence_parallel_size=2"],
            "attn_implementation=sdpa with Ulysses",
        ),
        (["+fgrpo=async_7b", "data.train_batch_size=200"], "parameter_sync_step=4 x actor_rollout_ref.actor.ppo_mini"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(stock_config, inputs, overrides, words):
    from fgrpo_plugin.host.settings.switch import complete

    with pytest.raises(ValueError, match=words):
        complete(stock_config(*inputs[:2], *overrides))


def test_the_async_recipe_meets_what_the_host_s_trainer_asserts(stock_config, inputs):
    config = stock_config("+fgrpo=async_7b", *inputs[:2])
    mode = config.trainer.v1.separate_async
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert config.data.train_batch_size == mode.parameter_sync_step * actor.ppo_mini_batch_size
    assert rollout.nnodes > 0 and rollout.n_gpus_per_node > 0 and rollout.checkpoint_engine.backend != "naive"


def test_every_algorithm_and_data_set_has_a_folder_of_its_own(stock_config, inputs):
    divergence = "actor_rollout_ref.actor.policy_loss.f_divergence.divergence"
    runs = [
        stock_config(f"+fgrpo={group}", *inputs[:2], *overrides).trainer.default_local_dir
        for group in MATH
        for overrides in (
            [],
            [f"{divergence}=kl"],
            ["algorithm.adv_estimator=grpo", "~actor_rollout_ref.actor.policy_loss.f_divergence"],
        )
    ]
    assert len(set(runs)) == len(runs)


def test_the_tables_script_prints_every_cell_and_its_commands_are_valid(stock_config, inputs):
    from fgrpo_plugin.host.settings.switch import complete

    script = ROOT / "recipes" / "math" / "tables.sh"
    printed = subprocess.run([script], env={**os.environ, "LAUNCH": "echo"}, check=True, capture_output=True, text=True)
    commands = [line.split("main_ppo ")[1].split() for line in printed.stdout.splitlines()]
    assert len(commands) == 2 * 3 * 7 and len(set(map(tuple, commands))) == 42
    # Every model and data set once, and every algorithm once.
    for overrides in [commands[7 * i + i] for i in range(6)] + [commands[6]]:
        config = stock_config(*overrides, *inputs[:2])
        if config.algorithm.adv_estimator == "f_grpo":
            complete(config)


def test_the_safety_recipe_composes_and_is_valid(stock_config, inputs, tmp_path):
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.settings.switch import complete

    files = []
    for name in ("train", "held_out"):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [f'{{"prompt": "{name}", "completion": "c", "label": {label}}}\n' for label in ("true", "false")]
        files[-1].write_text("".join(rows * 256))
    config = stock_config(
        "+fgrpo=safety", *inputs[:2], f"data.preference.files=[{files[0]}]", f"data.preference.val_files=[{files[1]}]"
    )
    complete(config)
    settings = config.actor_rollout_ref.actor.policy_loss.f_divergence
    assert (config.algorithm.adv_estimator, settings.divergence, settings.lam) == ("f_hal", "jensen_shannon", 0.5)
    assert settings.preset == "released"
    assert config.reward.reward_model.enable and config.trainer.n_gpus_per_node == 8
    validate_config(config, use_reference_policy=True, use_critic=False)


OTHER_VALUES = {
    "preset": "released",
    "divergence": "kl",
    "link": "density_ratio",
    "alpha": 2.5,
    "beta": 0.25,
    "gamma": 0.5,
    "level": "token",
    "weighting": "none",
    "weight_cap": 3.0,
    "weight_temperature": 2.0,
    "weight_level": "sequence",
    "weight_scale": "group",
    "scale": [1.0, 2.0],
    "implicit_reward_clip": 4.0,
    "lam": {"schedule": "linear", "start": 0.8, "end": 0.2},
    "preference_gamma": 0.5,
}
OTHER_PREFERENCES = {
    "files": ["a"],
    "val_files": ["b"],
    "split": "x",
    "val_split": "y",
    "config": "z",
    "columns": {"prompt": "question"},
    "batch_size": 8,
    "keep_pairs": True,
    "seed": 3,
    "on_bad_row": "skip",
    "on_too_long": "drop",
    "on_templated": "keep",
    "cache_dir": "/c",
    "keep_rollout": True,
}
SECTION = "actor_rollout_ref.actor.policy_loss.f_divergence"
RECIPES = ["async_7b", "laptop_hybrid", "math_7b", "safety", "scale_70b_megatron", "[cpu,f_grpo,f_hal]"]


def _every_setting(mark: str) -> list[str]:
    """An override of each documented setting, with another value than its default."""
    values = {f"{SECTION}.{name}": value for name, value in OTHER_VALUES.items()}
    values |= {f"data.preference.{name}": value for name, value in OTHER_PREFERENCES.items()}
    return [f"{mark}{name}={json.dumps(value)}".replace('"', "") for name, value in values.items()]


def _arrived(config) -> None:
    section = OmegaConf.to_container(config.actor_rollout_ref.actor.policy_loss.f_divergence)
    assert {name: section[name] for name in OTHER_VALUES} == OTHER_VALUES
    assert OmegaConf.to_container(config.data.preference) == OTHER_PREFERENCES


def test_every_setting_has_another_value_here():
    assert OTHER_VALUES.keys() | {"old_log_prob"} == {field.name for field in fields(FDivergenceConfig)}
    assert OTHER_PREFERENCES.keys() == {field.name for field in fields(PreferenceConfig)}
    defaults = asdict(FDivergenceConfig()) | asdict(PreferenceConfig(files=["x"]))
    assert all(value != defaults[name] for name, value in (OTHER_VALUES | OTHER_PREFERENCES).items())


@pytest.mark.parametrize("group", [None, *sorted(file.stem for file in CONF.glob("*.yaml"))])
def test_every_documented_setting_composes_in_the_documented_form_after_every_group(stock_config, group):
    _arrived(stock_config(*([f"+fgrpo={group}"] if group else []), *_every_setting("++")))


@pytest.mark.parametrize("group", RECIPES)
def test_a_recipe_s_settings_need_no_mark(stock_config, group):
    of_f_hal = ("data.preference.", f"{SECTION}.lam", f"{SECTION}.preference_gamma")
    overrides = _every_setting("")
    if "hal" in group or group in ("safety", "laptop_hybrid"):
        _arrived(stock_config(f"+fgrpo={group}", *overrides))
    else:
        stock_config(f"+fgrpo={group}", *[word for word in overrides if not word.startswith(of_f_hal)])


def test_the_groups_f_grpo_and_f_hal_are_written_from_the_settings(stock_config):
    from docs.make.groups import groups

    for name, content in groups().items():
        assert (CONF / name).read_text() == content, f"{name}: run `make docs`"
    config = stock_config("+fgrpo=[f_grpo,f_hal]")
    assert config.algorithm.adv_estimator == "f_hal" and config.data.preference.files == []
    assert asdict(PreferenceConfig(files=["a"])) == OmegaConf.to_container(config.data.preference) | {"files": ["a"]}
    section = OmegaConf.to_container(config.actor_rollout_ref.actor.policy_loss.f_divergence)
    assert asdict(FDivergenceConfig(lam=0.5)) == asdict(FDivergenceConfig(**section))
    assert stock_config("+fgrpo=f_grpo").algorithm.adv_estimator == "f_grpo"


@pytest.mark.parametrize("group", ["math_7b", "safety", "scale_32b_megatron", "async_7b"])
def test_a_recipe_logs_without_an_account(stock_config, group):
    """verl's default, wandb, asks for a login when the run has its GPUs."""
    assert stock_config(f"+fgrpo={group}").trainer.logger == ["console", "tensorboard"]


@pytest.mark.parametrize("group, logger", [("cpu", []), ("cpu_megatron", []), ("quickstart", ["file"])])
def test_a_run_on_a_cpu_does_so_too_and_may_have_another_logger(stock_config, group, logger):
    assert stock_config(f"+fgrpo={group}").trainer.logger == ["console", *logger]
    assert stock_config(f"+fgrpo={group}", "trainer.logger=[wandb]").trainer.logger == ["wandb"]


@pytest.mark.parametrize("group", ["f_grpo", "f_hal", "data_limr", "data_open_rs"])
def test_a_group_of_an_algorithm_or_of_data_leaves_the_loggers_alone(stock_config, group):
    assert stock_config(f"+fgrpo={group}").trainer.logger == stock_config().trainer.logger


def _documented_overrides() -> list[tuple[str, list[str]]]:
    """Every ``python -m verl.trainer.main_ppo ...`` in a fenced block of a README or a docs page."""
    found = []
    for page in [ROOT / "README.md", *ROOT.glob("recipes/*/README.md"), *ROOT.glob("docs/*.md")]:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if "verl.trainer.main_ppo" in line:
                    words = shlex.split(line.split("verl.trainer.main_ppo")[1], comments=True)
                    found.append(
                        (str(page.relative_to(ROOT)), [word for word in words if "=" in word or word.startswith("~")])
                    )
    return found


def test_documented_runs_of_a_recipe_do_not_resume_one_another(stock_config):
    """verl resumes from the checkpoint folder of the same name."""
    runs: dict[str, dict[str, list[str]]] = {}
    for page, overrides in _documented_overrides():
        if page.startswith("recipes/"):
            folder = stock_config(*overrides).trainer.default_local_dir
            earlier = runs.setdefault(page, {}).setdefault(folder, overrides)
            assert earlier == overrides, f"{page}: {folder}"
    assert sum(len(folders) for folders in runs.values()) >= 10


def test_every_documented_command_line_composes_and_is_valid(stock_config, inputs, tmp_path):
    from fgrpo_plugin.host.settings.switch import complete

    for name in ("files", "val_files"):
        pairs = [f'{{"prompt": "{name} {i}", "chosen": "a", "rejected": "b"}}\n' for i in range(1024)]
        (tmp_path / f"preference.{name}.jsonl").write_text("".join(pairs))
    reward, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_data.md").read_text(), flags=re.DOTALL)
    (tmp_path / "my_reward.py").write_text(reward)
    commands = _documented_overrides()
    assert len(commands) >= 3
    for page, overrides in commands:
        paths = re.compile(r"(data\.(train|val)_files|actor_rollout_ref\.model\.path)=")
        documented = [
            re.sub(r"(preference\.(val_)?files)=.*", rf"\1=[{tmp_path}/\1.jsonl]", word) for word in overrides
        ]
        documented = [
            re.sub(r"(reward_function\.path)=.*", rf"\1={tmp_path}/my_reward.py", word) for word in documented
        ]
        documented = [word for word in documented if not paths.match(word)]
        names_a_model = any(re.match(r"\+fgrpo=\[?(math|safety|scale|async)_?", word) for word in overrides)
        replaced = [*inputs[:2], *([] if names_a_model else inputs[2:3])]
        config = stock_config(*documented, *replaced)
        if config.algorithm.adv_estimator in ("f_grpo", "f_hal"):
            try:
                complete(config)
            except ValueError as error:
                pytest.fail(f"{page}: {' '.join(overrides)}: {error}")
