"""What verl says of itself with the platform: one process for all tests."""

import json

import pytest

from tests.host.cpu.fresh import run

FACTS = """
    import json
    from fgrpo_plugin.host.cpu import install
    {before}
    import verl
    {after}
    import torch
    import verl.utils.distributed
    from omegaconf import OmegaConf
    from verl.plugin.platform import get_platform
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
    from verl.utils.device import get_device_name, get_torch_device, is_support_ipc
    from verl.workers.engine import EngineRegistry

    device = get_torch_device()
    device.synchronize(); device.empty_cache(); device.set_device(0)

    groups = []
    torch.distributed.init_process_group = lambda **asked: groups.append(asked["backend"])
    verl.utils.distributed.initialize_global_process_group_ray(timeout_second=None)
    verl.utils.distributed.initialize_global_process_group_ray(60, "cpu:gloo")

    # The arguments that verl gives a replay buffer, see `PPOTrainer._build_replay_buffer`.
    sampler = dict(
        trainer_mode="sync",
        trainer_config=OmegaConf.create(dict()),
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create(dict()),
        refill_fn=None,
    )

    print(json.dumps(dict(
        device=get_device_name(),
        tensors_go_to=torch.ones(1).to(get_platform().current_device()).device.type,
        ipc=is_support_ipc(),
        ray=get_platform().ray_resource_options(1),
        rng=torch.equal(device.get_rng_state(), torch.get_rng_state()),
        memory=0 < device.memory_allocated() < device.mem_get_info()[1],
        engines=[
            EngineRegistry.get_engine_cls(kind, backend).__name__
            for kind in ("language_model", "value_model")
            for backend in ("fsdp", "fsdp2")
        ],
        groups=groups,
        polls=[
            buffer(**sampler, **asked).poll_interval
            for buffer in (ReplayBuffer, ReplayBufferAsync)
            for asked in (dict(), dict(poll_interval=1.5))
        ],
    )))
"""


@pytest.fixture(scope="session", params=["before", "after"])
def facts(request):
    """What verl says of itself when the platform is installed before, or after, `import verl`."""
    code = FACTS.format(**({"before": "", "after": ""} | {request.param: "install(); install()"}))
    return json.loads(run(code, VERL_PLATFORM="cpu"))
