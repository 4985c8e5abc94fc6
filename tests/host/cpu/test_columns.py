"""What verl's queue hands to a worker: every tensor, and of the other columns the one that engines read."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transfer_queue
import verl.workers.engine
from tensordict import NonTensorStack, TensorDict
from transfer_queue.metadata import BatchMeta, extract_field_schema

from fgrpo_plugin.host.cpu.columns import READ, register


@pytest.fixture
def rows():
    columns = {
        "input_ids": torch.nested.as_nested_tensor([torch.arange(3), torch.arange(5)], layout=torch.jagged),
        "f_divergence_weight": torch.ones(2),
        "prompts": torch.ones(2, 4),
        READ: NonTensorStack({}, {"pixel_values": torch.ones(1)}),
        "raw_prompt": NonTensorStack([{"role": "user", "content": "1+1="}], [{"role": "user", "content": "2+2="}]),
        "uid": NonTensorStack("a", "b"),
    }
    return TensorDict(columns, batch_size=2)


def _module(rows):
    """verl's module, whose queue holds these rows."""
    module = ModuleType("transferqueue_utils")

    def kv_batch_meta2batch_meta(meta):
        return BatchMeta(
            global_indexes=[3, 4],
            partition_ids=[meta, meta],
            field_schema=extract_field_schema(rows),
            extra_info={"temperature": 1.0},
        )

    module.kv_batch_meta2batch_meta = kv_batch_meta2batch_meta
    return module


def test_a_worker_is_handed_every_tensor_and_what_engines_read_besides(rows):
    module = _module(rows)
    stock = module.kv_batch_meta2batch_meta("train")
    register(module)
    batch = module.kv_batch_meta2batch_meta("train")
    kept = {"input_ids", "f_divergence_weight", "prompts", READ}
    assert set(batch.field_names) == kept and set(stock.field_names) - kept == {"raw_prompt", "uid"}
    for name in kept:
        assert batch.field_schema[name] == stock.field_schema[name]
    for same in ("global_indexes", "partition_ids", "extra_info", "size"):
        assert getattr(batch, same) == getattr(stock, same)


def test_a_verl_that_fetches_otherwise_is_left_alone():
    module = ModuleType("transferqueue_utils")
    before = dict(vars(module))
    register(module)
    assert vars(module) == before


def test_verls_own_module_fetches_so_and_its_engines_read_that_column():
    from verl.utils import transferqueue_utils

    assert callable(transferqueue_utils.kv_batch_meta2batch_meta)
    assert hasattr(transfer_queue, "KVBatchMeta")
    for engine in ("fsdp", "megatron"):
        source = (Path(verl.workers.engine.__file__).parent / engine / "transformer_impl.py").read_text()
        assert re.search(rf'\.get\("{READ}", \[\]\)', source)
        assert "raw_prompt" not in source
