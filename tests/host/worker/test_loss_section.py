"""The typed section on both of verl's paths from a configuration to a dataclass."""

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import SWITCH, F


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
