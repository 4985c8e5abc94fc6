"""What verl's queue hands to a worker: every tensor, and of the other columns the one that engines read."""

import asyncio
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from transfer_queue.metadata import BatchMeta, extract_field_schema
from verl.protocol import BatchData
from verl.utils import transferqueue_utils

from fgrpo_plugin.host.cpu.columns import FETCHES, READ, register
from tests.host.cpu.fresh import run

TENSORS = {"input_ids", "f_divergence_weight", "prompts"}


@pytest.fixture
def held():
    """What the queue says of a batch of two rows."""
    columns = {
        "input_ids": torch.nested.as_nested_tensor([torch.arange(3), torch.arange(5)], layout=torch.jagged),
        "f_divergence_weight": torch.ones(2),
        "prompts": torch.ones(2, 4),
        READ: NonTensorStack({}, {"pixel_values": torch.ones(1)}),
        "raw_prompt": NonTensorStack([{"role": "user", "content": "1+1="}], [{"role": "user", "content": "2+2="}]),
        "uid": NonTensorStack("a", "b"),
    }
    schema = extract_field_schema(TensorDict(columns, batch_size=2))
    return BatchMeta(global_indexes=[3, 4], partition_ids=["train"] * 2, field_schema=schema, extra_info={"seed": 1})


def test_a_worker_is_handed_every_tensor_and_what_engines_read_besides(held):
    module = ModuleType("transferqueue_utils")

    async def fetch(meta):
        return held

    vars(module)[FETCHES] = fetch
    register(module)
    batch = asyncio.run(vars(module)[FETCHES]("train"))
    assert set(batch.field_names) == TENSORS | {READ} and set(held.field_names) == TENSORS | {READ, "raw_prompt", "uid"}
    for name in batch.field_names:
        assert batch.field_schema[name] == held.field_schema[name]
    for same in ("global_indexes", "partition_ids", "extra_info", "size"):
        assert getattr(batch, same) == getattr(held, same)


def test_so_is_each_rank_to_which_verl_deals_a_batch(held, monkeypatch):
    async def retrieve(**asked):
        return held

    client = SimpleNamespace(async_kv_retrieve_meta=retrieve)
    monkeypatch.setattr(transferqueue_utils, "TQ_INITIALIZED", True)
    monkeypatch.setattr(transferqueue_utils.tq, "get_client", lambda: client)
    batch = KVBatchMeta(keys=["a", "b"], tags=[{}, {}], partition_id="train", extra_info={"seed": 2})
    ranks = BatchData(batch).chunk(2)
    assert [set(rank.field_names) for rank in ranks] == [TENSORS | {READ}] * 2
    assert [rank.extra_info["seed"] for rank in ranks] == [2, 2]


@pytest.mark.parametrize("platform, wrapped", [("cpu", "True"), ("nvidia", "False")])
def test_on_a_cpu_alone(platform, wrapped):
    code = f"""
        import fgrpo_plugin.host.register
        from verl.utils import transferqueue_utils
        print(hasattr(transferqueue_utils.{FETCHES}, "__wrapped__"))
    """
    assert run(code, VERL_PLATFORM=platform) == wrapped


def test_a_verl_that_fetches_otherwise_is_left_alone():
    module = ModuleType("transferqueue_utils")
    before = dict(vars(module))
    register(module)
    assert vars(module) == before
