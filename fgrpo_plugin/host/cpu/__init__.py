"""A platform that lets the stock verl run without an accelerator.

What verl offers an extension point for is registered: the platform, the engines, the worker extension, the
distribution's metadata. `gloo`, `sampler`, `columns`, `empty_tensors` and `agent_loops` replace functions of verl,
`inspection` one of vLLM; `attention` stands in for the flash kernel.
"""

from functools import cache

import wrapt

from fgrpo_plugin.host.cpu import package_metadata

# module of verl or vLLM -> what to call with it once it is imported
_HOOKS = {
    "verl.plugin.platform.platform_manager": "fgrpo_plugin.host.cpu.platform:register",
    "verl.utils.distributed": "fgrpo_plugin.host.cpu.gloo:register",
    "verl.models.transformers.monkey_patch": "fgrpo_plugin.host.cpu.attention:register",
    "verl.trainer.ppo.v1.replay_buffer": "fgrpo_plugin.host.cpu.sampler:register",
    "verl.protocol": "fgrpo_plugin.host.cpu.empty_tensors:register",
    "verl.utils.transferqueue_utils": "fgrpo_plugin.host.cpu.columns:register",
    "verl.experimental.agent_loop.agent_loop": "fgrpo_plugin.host.cpu.agent_loops:register",
    "vllm.model_executor.models.registry": "fgrpo_plugin.host.cpu.inspection:register",
    "verl.workers.engine.fsdp.transformer_impl": "fgrpo_plugin.host.cpu.fsdp:register",
    "verl.workers.engine.megatron.transformer_impl": "fgrpo_plugin.host.cpu.megatron:register",
}


@cache
def install() -> None:
    """Adapt this process to the CPU; modules of verl that are not imported yet are adapted when they are."""
    package_metadata.offer()
    for module, hook in _HOOKS.items():
        wrapt.register_post_import_hook(hook, module)
