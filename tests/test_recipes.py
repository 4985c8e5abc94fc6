"""Every documented command line composes against the stock host and passes its validation and ours."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUPS = ["math_1_5b", "math_7b"]


@pytest.mark.parametrize("group", GROUPS)
def test_recipe_composes_and_is_valid(stock_config, inputs, group):
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.validate import complete

    config = stock_config(f"+fgrpo={group}", *inputs[:2])
    assert config.actor_rollout_ref.model.path.startswith("Qwen/Qwen2.5-Math")
    complete(config)
    assert config.algorithm.rollout_correction.bypass_mode is True
    assert config.actor_rollout_ref.actor.policy_loss.f_divergence.old_log_prob == "current"
    validate_config(config, use_reference_policy=True, use_critic=False)


def test_the_safety_recipe_composes_and_is_valid(stock_config, inputs, tmp_path):
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.validate import complete

    files = []
    for name in ("train", "held_out"):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [f'{{"prompt": "p", "completion": "c", "label": {label}}}\n' for label in ("true", "false")]
        files[-1].write_text("".join(rows * 256))
    config = stock_config(
        "+fgrpo=safety", *inputs[:2], f"data.preference.files=[{files[0]}]", f"data.preference.val_files=[{files[1]}]"
    )
    complete(config)
    settings = config.actor_rollout_ref.actor.policy_loss.f_divergence
    assert (config.algorithm.adv_estimator, settings.divergence, settings.lam) == ("f_hal", "jensen_shannon", 0.5)
    assert config.reward.reward_model.enable and config.trainer.n_gpus_per_node == 8
    validate_config(config, use_reference_policy=True, use_critic=False)


def test_the_f_hal_group_offers_every_preference_setting_at_its_default(stock_config):
    from dataclasses import asdict

    from fgrpo_plugin.config import PreferenceConfig

    section = stock_config("+fgrpo=f_hal").data.preference
    assert dict(section) | {"files": ["a"]} == asdict(PreferenceConfig(files=["a"]))


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


def test_every_documented_command_line_composes_and_is_valid(stock_config, inputs, tmp_path):
    from fgrpo_plugin.host.validate import complete

    for name in ("files", "val_files"):
        pairs = [f'{{"prompt": "{i}", "chosen": "a", "rejected": "b"}}\n' for i in range(1024)]
        (tmp_path / f"preference.{name}.jsonl").write_text("".join(pairs))
    commands = _documented_overrides()
    assert len(commands) >= 3
    for page, overrides in commands:
        paths = re.compile(r"(data\.(train|val)_files|actor_rollout_ref\.model\.path)=")
        documented = [
            re.sub(r"(preference\.(val_)?files)=.*", rf"\1=[{tmp_path}/\1.jsonl]", word) for word in overrides
        ]
        documented = [word for word in documented if not paths.match(word)]
        names_a_model = any(word.startswith(("+fgrpo=math", "+fgrpo=safety")) for word in overrides)
        replaced = [*inputs[:2], *([] if names_a_model else inputs[2:3])]
        config = stock_config(*documented, *replaced)
        if config.algorithm.adv_estimator in ("f_grpo", "f_hal"):
            try:
                complete(config)
            except ValueError as error:
                pytest.fail(f"{page}: {' '.join(overrides)}: {error}")
