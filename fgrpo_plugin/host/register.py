"""The entry point of group ``verl.plugins``: what is registered with verl, in reading order.

verl imports this module at the end of ``import verl``, in every process. Loading is lazy: it only registers
post-import hooks on verl's modules.
"""

import importlib
import os
from types import ModuleType

import wrapt

from fgrpo_plugin.host.shims import apply_checked, refuse


def _advantage_and_loss(core_algos: ModuleType) -> None:
    from fgrpo_plugin.host.driver.advantage import f_grpo_advantage
    from fgrpo_plugin.host.worker.policy_loss import POLICY_LOSSES

    for name, loss in POLICY_LOSSES.items():
        taken = core_algos.POLICY_LOSS_REGISTRY.get(name, loss)
        if taken is not loss:  # verl would overwrite it silently
            raise RuntimeError(
                f"a policy loss named {name!r} is already registered ({taken}); unregister one of the two."
            )
        core_algos.register_adv_est(name)(f_grpo_advantage)
        core_algos.register_policy_loss(name)(loss)


def _config_groups(plugins: ModuleType) -> None:
    from fgrpo_plugin.host.search_path import register_search_path

    register_search_path(plugins)


def _shim(name: str):
    def apply(module: ModuleType) -> None:
        shim = importlib.import_module(f"fgrpo_plugin.host.shims.{name}")
        apply_checked(name, shim.apply, module)

    return apply


def _config_hooks(config: ModuleType) -> None:
    from fgrpo_plugin.host.shims.config_hook import use_host_hooks

    use_host_hooks(config)


def _gradients(base: ModuleType) -> None:
    from fgrpo_plugin.host.worker.non_finite import watch_gradients

    watch_gradients(base)


def _rewards(reward_loop: ModuleType) -> None:
    from fgrpo_plugin.host.worker.rewards import refuse_bad_rewards

    refuse_bad_rewards(reward_loop)


def _weight_sockets(transfer: ModuleType) -> None:
    from fgrpo_plugin.host.worker.weight_sockets import separate_runs

    separate_runs(transfer)


HOOKS = {
    "verl.trainer.ppo.core_algos": _advantage_and_loss,
    "verl.trainer.ppo.v1": _shim("trainer_mode"),
    "hydra.core.plugins": _config_groups,
    "verl.workers.utils.losses": _shim("policy_loss_fields"),
    "verl.trainer.ppo.utils": _shim("reference_policy"),
    "verl.utils.device": _shim("config_hook"),
    "verl.utils.config": _config_hooks,
    "verl.workers.engine.base": _gradients,
    "verl.experimental.reward_loop.reward_loop": _rewards,
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer": _weight_sockets,
    "verl.workers.rollout.vllm_rollout.vllm_rollout": _shim("weight_transfer"),
}


def _guarded(name: str, hook):
    """Wrap a hook so that its error is noted: verl stays usable for everything but f-GRPO."""

    def run(module: ModuleType) -> None:
        try:
            hook(module)
        except Exception as error:
            refuse(name, error)

    return run


def _install() -> None:
    for name, hook in HOOKS.items():
        wrapt.register_post_import_hook(_guarded(name, hook), name)
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from fgrpo_plugin.host import cpu

        cpu.install()


_install()
