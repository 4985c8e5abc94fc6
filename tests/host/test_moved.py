"""Paths that configurations of 0.1 and 0.2 carry still lead to what they named."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("fgrpo_plugin.host.config:FDivergencePolicyLossConfig", "fgrpo_plugin.host.worker.loss_section"),
        ("fgrpo_plugin.host.offline:NoPrompts", "fgrpo_plugin.host.driver.offline"),
        ("fgrpo_plugin.host.offline:NoRollouts", "fgrpo_plugin.host.driver.offline"),
        ("fgrpo_plugin.host.cpu.sampler:FastPollReplayBuffer", "fgrpo_plugin.host.cpu.sampler"),
        ("fgrpo_plugin.host.cpu.worker:CpuWorkerExtension", "fgrpo_plugin.host.cpu.worker"),
        ("fgrpo_plugin.host.cpu.megatron_config:CpuMcoreEngineConfig", "fgrpo_plugin.host.cpu.megatron_config"),
        ("fgrpo_plugin.quickstart.task:compute_score", "fgrpo_plugin.quickstart.task"),
        ("fgrpo_plugin.quickstart.hybrid:proxy_reward", "fgrpo_plugin.quickstart.hybrid"),
    ],
)
def test_a_path_that_a_configuration_carries_is_importable(path, now):
    module, _, name = path.partition(":")
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(now), name)


def test_a_section_that_an_earlier_version_has_completed_is_still_the_typed_one(stock_config, inputs):
    from verl.utils.config import omega_conf_to_dataclass

    from fgrpo_plugin.host.settings.switch import complete
    from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig

    config = stock_config(*inputs, "algorithm.adv_estimator=f_grpo")
    complete(config)
    section = config.actor_rollout_ref.actor.policy_loss
    section._target_ = "fgrpo_plugin.host.config.FDivergencePolicyLossConfig"
    found = omega_conf_to_dataclass(section)
    assert isinstance(found, FDivergencePolicyLossConfig) and found.f_divergence.beta == 0.1
