"""A trainer of each mode on a real queue, whose workers are stood in for."""

import shutil
import tempfile
from types import SimpleNamespace

import pytest

from tests.support.queued_updates import LAM, MINIBATCH, PREFERENCES, PROMPTS, Workers, put_answers


@pytest.fixture(scope="module")
def queue():
    """A TransferQueue on a Ray of this module's own."""
    import ray
    import transfer_queue
    from omegaconf import OmegaConf

    folder = tempfile.mkdtemp(prefix="fg", dir="/tmp")  # Ray's sockets allow short paths only
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _temp_dir=folder,
    )
    storage = {"storage_backend": "SimpleStorage", "SimpleStorage": {"num_data_storage_units": 2}}
    transfer_queue.init(OmegaConf.create({"enable": True, "backend": storage}))
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(queue, stock_config, inputs, tmp_path):
    """A trainer of a mode, as its class makes it, with its workers; the queue is emptied afterwards."""
    import json

    from verl.trainer.ppo.v1 import get_trainer_cls

    from fgrpo_plugin.host.driver.preference_source import PreferenceSource
    from fgrpo_plugin.host.settings.switch import complete
    from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

    tokenizer, file = build_tokenizer(), tmp_path / "prefs.jsonl"
    save_model(build_model(tokenizer, 0), tokenizer, tmp_path / "model")
    pairs = [{"prompt": f"{i}+1=", "chosen": "1" * (i % 9 + 1), "rejected": f"{i}"} for i in range(20)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def made(mode, ranks, estimator="f_hal", *overrides):
        preference = [
            f"+data.preference.files=[{file}]",
            f"+data.preference.batch_size={PREFERENCES}",
            f"+data.preference.cache_dir={tmp_path / 'cache'}",
            f"+actor_rollout_ref.actor.policy_loss.f_divergence.lam={LAM}",
        ]
        config = stock_config(
            *inputs,
            f"algorithm.adv_estimator={estimator}",
            *(preference if estimator == "f_hal" else []),
            f"trainer.v1.trainer_mode={mode}",
            f"trainer.v1.separate_async.parameter_sync_step={PROMPTS // MINIBATCH}",
            "trainer.v1.separate_async.hybrid_rollout.enable_switch=false",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
            f"trainer.n_gpus_per_node={ranks}",
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={MINIBATCH}",
            "actor_rollout_ref.actor.use_dynamic_bsz=false",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={ranks}",  # one rank: one row, so one half alone
            "actor_rollout_ref.actor.calculate_entropy=true",
            "actor_rollout_ref.actor.use_kl_loss=true",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
            *overrides,
        )
        complete(config)
        trainer = get_trainer_cls(mode)(config)
        trainer.tokenizer, trainer.global_steps, trainer.total_training_steps = tokenizer, 1, 3
        trainer.timing_raw, trainer.ref_in_actor, trainer.curr_step_profile = {}, False, False
        trainer.current_mode = None  # separate_async: its colocated engines are never lent to sampling here
        trainer.actor_rollout_wg = trainer.ref_policy_wg = Workers(config, ranks)
        trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: ranks)
        trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
        trainer.checkpoint_manager = SimpleNamespace(abort_replicas=lambda: None, sleep_replicas=lambda: None)
        trainer.prepare_step = lambda: put_answers(queue, trainer.global_steps)
        if estimator == "f_hal":
            trainer.preferences = PreferenceSource(config, tokenizer)
        return trainer, trainer.actor_rollout_wg

    yield made
    for partition, items in (queue.kv_list() or {}).items():
        if items:
            queue.kv_clear(keys=list(items), partition_id=partition)
