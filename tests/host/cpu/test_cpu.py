"""What is installed, and when, and the config group."""

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
