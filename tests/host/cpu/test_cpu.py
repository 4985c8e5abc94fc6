"""What is installed, and when, and the config group."""

import pickle

import numpy as np
import torch
from omegaconf import OmegaConf

from tests.host.cpu.fresh import ROOT, run

CONF = ROOT / "fgrpo_plugin" / "conf"


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


def test_config_group_composes_on_the_stock_config():
    code = f"""
        from hydra import compose, initialize_config_module
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose(
                "ppo_trainer",
                overrides=["hydra.searchpath=[file://{CONF}]", "+fgrpo=cpu", "trainer.n_gpus_per_node=2"],
            )
        print(
            config.trainer.device,
            config.ray_kwargs.ray_init.num_gpus,
            config.actor_rollout_ref.rollout.enable_sleep_mode,
            config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype,
            config.actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype,
            config.trainer.v1.sampler.custom_sampler.name,
        )
    """
    assert run(code, VERL_PLATFORM="nvidia") == "cpu 2 False fp32 fp32 None"


def test_a_response_goes_to_the_reward_worker_whole_and_without_torch_save(monkeypatch):
    from verl.protocol import DataProto

    tensors = {"responses": torch.arange(6).view(1, 6), "rollout_log_probs": torch.rand(1, 6)}
    names = {"data_source": np.array(["sums"], dtype=object)}
    given = DataProto.from_dict(tensors, non_tensors=names, meta_info={"step": 3})
    settings = OmegaConf.load(CONF / "fgrpo" / "cpu_common.yaml").ray_kwargs.ray_init.runtime_env.env_vars
    name = "VERL_DATAPROTO_SERIALIZATION_METHOD"
    monkeypatch.setenv(name, settings[name])
    monkeypatch.delattr(torch, "save")
    came = pickle.loads(pickle.dumps(given))
    assert set(came.batch.keys()) == set(tensors) and came.meta_info == {"step": 3}
    for key, value in tensors.items():
        assert came.batch[key].dtype == value.dtype and torch.equal(came.batch[key], value)
    assert came.non_tensor_batch["data_source"].tolist() == ["sums"]
