"""How Megatron on a CPU is asked for: composed and validated as the stock `main_ppo` would, and off where it is not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("megatron.core")

MEGATRON = "actor_rollout_ref.actor.megatron"


@pytest.mark.parametrize("group", ["cpu_megatron", "quickstart_megatron"])
@pytest.mark.parametrize("parallel", ["tensor_model", "pipeline_model", "context"])
def test_the_group_selects_megatron_and_is_valid(stock_config, inputs, group, parallel):
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from fgrpo_plugin.host.settings.switch import complete

    parallel_size = f"{MEGATRON}.{parallel}_parallel_size=2"
    others = [word for word in inputs if "rollout.n=" not in word or group == "cpu_megatron"]
    config = stock_config(
        f"+fgrpo={group}", *others, "algorithm.adv_estimator=f_grpo", "trainer.n_gpus_per_node=2", parallel_size
    )
    complete(config)
    validate_config(config, use_reference_policy=True, use_critic=False)
    for part in (config.actor_rollout_ref.actor, config.actor_rollout_ref.ref):
        engine = omega_conf_to_dataclass(part.megatron)
        assert (part.strategy, engine.dtype) == ("megatron", "float32")
        assert getattr(engine, f"{parallel}_parallel_size") == 2


def test_f_hal_too(stock_config, inputs, tmp_path):
    from verl.utils.config import validate_config

    from fgrpo_plugin.host.settings.layout import data_parallel_size
    from fgrpo_plugin.host.settings.switch import complete

    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 512)
    config = stock_config(
        "+fgrpo=[cpu_megatron,f_hal]",
        *inputs,
        f"data.preference.files=[{rows}]",
        "trainer.n_gpus_per_node=4",
        f"{MEGATRON}.pipeline_model_parallel_size=2",
    )
    complete(config)
    validate_config(config, use_reference_policy=True, use_critic=False)
    assert data_parallel_size(config) == 2
    config.actor_rollout_ref.actor.megatron.dynamic_context_parallel = True
    assert data_parallel_size(config) == 1  # as the engine says: each rank is given every row


def test_half_precision_remains_and_other_types_are_refused():
    from fgrpo_plugin.host.cpu.megatron_config import CpuMcoreEngineConfig

    assert CpuMcoreEngineConfig(dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(AssertionError, match="float64 not supported"):
        CpuMcoreEngineConfig(dtype="float64")


def test_megatron_bridge_is_refused_in_a_sentence():
    import verl.workers.engine  # noqa: F401  (registers ours, which is then imported)

    from fgrpo_plugin.host.cpu.megatron import CpuMegatronEngineWithLMHead

    with pytest.raises(ValueError, match=r"megatron\.vanilla_mbridge=true, or use \+fgrpo=cpu_megatron\.$"):
        CpuMegatronEngineWithLMHead(SimpleNamespace(), SimpleNamespace(vanilla_mbridge=False))


def test_nothing_is_answered_until_a_worker_asks_for_megatron():
    program = """
import torch
stock = torch.cuda.current_device
from verl.workers.engine import EngineRegistry
print(EngineRegistry.get_engine_cls("language_model", "megatron").__name__, torch.cuda.current_device is stock)
from fgrpo_plugin.host.cpu.megatron import answer_device_calls
answer_device_calls()
print(torch.cuda.current_device is stock, torch.cuda.is_available())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"VERL_PLATFORM": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["CpuMegatronEngineWithLMHead True", "False False"]
