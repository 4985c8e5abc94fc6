"""GPUs, parallel sizes and the model's shape that go together, and those that do not."""

import pytest

from fgrpo_plugin.host.settings.layout import (
    check_parallel_sizes,
    data_parallel_size,
    model_parallel_size,
    sequence_ranks,
    uses_lora,
)
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from tests.support.overrides import ASYNC, HAL, SWITCH, F

MODEL = "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B"  # 28 heads, 4 key-value heads
ULYSSES = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
PACKED = "actor_rollout_ref.model.use_remove_padding=true"
TP3 = "actor_rollout_ref.rollout.tensor_model_parallel_size=3"


@pytest.mark.parametrize(
    "size, words", [(2, None), (4, None), (8, "does not divide the 28 attention heads"), (1, None)]
)
def test_ulysses_divides_the_heads(stock_config, size, words):
    config = stock_config(MODEL, PACKED, f"{ULYSSES}={size}", "actor_rollout_ref.rollout.tensor_model_parallel_size=1")
    if words is None:
        check_parallel_sizes(config)
    else:
        with pytest.raises(ValueError, match=words):
            check_parallel_sizes(config)


def test_ulysses_and_the_key_value_heads_divide_one_another(stock_config):
    # Qwen2.5-1.5B: 12 heads, 2 key-value heads. 4 is a multiple of 2; 3 of neither.
    model = "actor_rollout_ref.model.path=Qwen/Qwen2.5-1.5B"
    tensor = "actor_rollout_ref.rollout.tensor_model_parallel_size=1"
    check_parallel_sizes(stock_config(model, PACKED, f"{ULYSSES}=4", tensor))
    with pytest.raises(ValueError, match="neither it nor their 2 key-value heads divide the other"):
        check_parallel_sizes(stock_config(model, PACKED, f"{ULYSSES}=3", tensor, "trainer.n_gpus_per_node=6"))


def test_ulysses_splits_packed_rows_alone(stock_config):
    config = stock_config(MODEL, "actor_rollout_ref.model.use_remove_padding=false", f"{ULYSSES}=2")
    with pytest.raises(ValueError, match="use_remove_padding=false with Ulysses"):
        check_parallel_sizes(config)


def test_the_sizes_of_a_rollout_engine_that_never_starts_do_not_matter(stock_config, inputs, preferences):
    """lambda = 1 trains on preference rows alone, on one GPU too, where verl's default rollout takes two."""
    model = [item for item in inputs if "model.path" in item or "use_dynamic_bsz" in item]
    offline = [HAL, preferences, f"{F}.lam=1", "trainer.val_before_train=false", "data.train_batch_size=256"]
    one_gpu = ["trainer.n_gpus_per_node=1", "+data.preference.batch_size=16"]
    check_and_fill_in(stock_config(*model, *offline, *one_gpu))
    check_and_fill_in(stock_config(*model, *offline, TP3))
    with pytest.raises(ValueError, match="no multiple of the 3 of one replica"):
        check_and_fill_in(stock_config(*inputs, *offline, "+data.preference.keep_rollout=true", TP3))
    with pytest.raises(ValueError, match="no multiple of the 3 of one replica"):
        check_and_fill_in(stock_config(*inputs, SWITCH, TP3))


@pytest.mark.parametrize(
    "overrides, lora",
    [
        ([], False),
        (["actor_rollout_ref.model.lora_rank=8"], True),
        (["actor_rollout_ref.model.lora.rank=8"], True),
        (["actor_rollout_ref.model.lora_adapter_path=/x"], True),
        (["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora.merge=true"], False),
    ],
)
def test_adapters_that_are_sent_by_themselves(stock_config, overrides, lora):
    assert uses_lora(stock_config(*overrides)) is lora


REF = "actor_rollout_ref.ref"


def test_the_reference_has_sizes_of_its_own(stock_config):
    """verl's older key of the actor is the reference's too, the newer one is not."""
    older = stock_config(PACKED, "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2")
    assert [model_parallel_size(older, part) for part in ("actor", "ref")] == [2, 2]
    newer = stock_config(PACKED, f"{ULYSSES}=2")
    assert [model_parallel_size(newer, part) for part in ("actor", "ref")] == [2, 1]
    assert [sequence_ranks(newer, part) for part in ("actor", "ref")] == [2, 1]
    assert [data_parallel_size(newer, part) for part in ("actor", "ref")] == [4, 8]
    # Above 1 the older key wins over the newer one.
    both = stock_config("actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", f"{ULYSSES}=4")
    assert model_parallel_size(both) == 2


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            [f"{REF}.ulysses_sequence_parallel_size=3"],
            "no multiple of the model-parallel size 3 of actor_rollout_ref.ref",
        ),
        ([f"{REF}.fsdp_config.ulysses_sequence_parallel_size=16"], "size 16 of actor_rollout_ref.ref"),
        (
            [f"{REF}.strategy=megatron"],
            "ref.strategy=megatron is of another engine than actor_",
        ),
        (["model_engine=megatron", f"{REF}.megatron.tensor_model_parallel_size=3"], "size 3 of actor_rollout_ref.ref"),
        (["actor_rollout_ref.rollout.data_parallel_size=3"], "no multiple of the 3 of one replica"),
        (["actor_rollout_ref.rollout.pipeline_model_parallel_size=3"], "no multiple of the 3 of one replica"),
        (
            [*ASYNC, "trainer.n_gpus_per_node=6", "actor_rollout_ref.rollout.tensor_model_parallel_size=4"],
            "6 GPUs that train and generate are no multiple of the 4",
        ),
        (
            [
                *ASYNC,
                "actor_rollout_ref.rollout.n_gpus_per_node=6",
                "actor_rollout_ref.rollout.tensor_model_parallel_size=4",
            ],
            "6 GPUs that generate are no multiple of the 4",
        ),
    ],
)
def test_every_engine_and_pool_is_looked_at(stock_config, overrides, words):
    config = stock_config(PACKED, "actor_rollout_ref.rollout.tensor_model_parallel_size=1", *overrides)
    with pytest.raises(ValueError, match=words):
        check_parallel_sizes(config)
    if any("trainer.n_gpus_per_node=6" in word for word in overrides):
        apart = stock_config(*overrides, "++actor_rollout_ref.hybrid_engine=false")
        check_parallel_sizes(apart)  # the training GPUs hold no replica


def test_with_an_adapter_the_references_sizes_are_not_read(stock_config):
    config = stock_config("actor_rollout_ref.model.lora_rank=8", f"{REF}.ulysses_sequence_parallel_size=3")
    check_parallel_sizes(config)


def test_the_reference_may_be_sharded_by_the_other_fsdp(stock_config):
    tensor = "actor_rollout_ref.rollout.tensor_model_parallel_size=1"
    check_parallel_sizes(stock_config(tensor, f"{REF}.strategy=fsdp2"))
