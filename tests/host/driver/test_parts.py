"""Which processes are watched, and what a server says of its engine."""

from types import SimpleNamespace

import pytest
import ray
from omegaconf import OmegaConf

from fgrpo_plugin.host.driver.parts import engine_failure, has_engine, parts_of


def several(name, count=2):
    return [f"{name}{number}" for number in range(count)]


@pytest.fixture
def trainer(monkeypatch):
    """verl's, with everything that a run can have."""

    def get_actor(name, namespace=None):
        if (name, namespace) in {("TransferQueueController", "transfer_queue"), ("TransferQueueStorageUnit#0", None)}:
            return name
        raise ValueError(name)

    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    workers = SimpleNamespace(workers=several("actor"))
    judges = [SimpleNamespace(servers=[f"judge{number}"]) for number in range(2)]
    return SimpleNamespace(
        config=OmegaConf.create({"transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": 2}}}}),
        actor_rollout_wg=workers,
        ref_policy_wg=workers,
        llm_server_manager=SimpleNamespace(
            get_replicas=lambda: [SimpleNamespace(servers=several("server"))], global_load_balancer="router"
        ),
        reward_loop_manager=SimpleNamespace(
            reward_loop_worker_handles=None,
            reward_loop_workers=several("reward"),
            reward_model_manager=SimpleNamespace(rollout_replicas=judges),
        ),
    )


def test_every_part_is_watched_once_under_a_name_of_its_own(trainer):
    watched = parts_of(trainer, SimpleNamespace(agent_loop_workers=several("loop")))
    names = ["actor worker", "rollout server", "agent loop worker", "reward loop worker", "reward model server"]
    two_each = {f"{name} {number}" for name in names for number in range(2)}
    assert set(watched) == two_each | {"rollout router 0", "queue controller 0", "queue storage 0"}
    assert watched["reward model server 1"] == "judge1" and watched["actor worker 0"] == "actor0"
    assert watched["queue controller 0"] == "TransferQueueController"


def test_what_a_run_has_not_is_not_watched(trainer, monkeypatch):
    trainer.reward_loop_manager.reward_model_manager = trainer.ref_policy_wg = trainer.llm_server_manager = None
    trainer.config = OmegaConf.create({})
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace=None: (_ for _ in ()).throw(ValueError(name)))
    assert set(parts_of(trainer, None)) == {
        "actor worker 0", "actor worker 1", "reward loop worker 0", "reward loop worker 1"
    }  # fmt: skip


def test_where_no_ray_runs_none_is_started(trainer, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_actor", None)
    assert not any("queue" in name for name in parts_of(trainer, None))


def test_servers_alone_have_an_engine():
    assert has_engine("rollout server 0") and has_engine("reward model server 3")
    assert not has_engine("actor worker 0") and not has_engine("rollout router 0")


def test_a_server_names_the_error_of_its_engine():
    dead = SimpleNamespace(errored=True, dead_error=RuntimeError("EngineCore encountered an issue"))
    assert engine_failure(SimpleNamespace(engine=dead)) == "EngineCore encountered an issue"
    assert engine_failure(SimpleNamespace(engine=SimpleNamespace(errored=False, dead_error=RuntimeError()))) is None
    assert engine_failure(SimpleNamespace()) is None  # another engine than vLLM, or not the first node of a replica


def test_vllm_has_what_is_read_of_it():
    from vllm.v1.engine.async_llm import AsyncLLM

    assert isinstance(vars(AsyncLLM)["errored"], property) and isinstance(vars(AsyncLLM)["dead_error"], property)
