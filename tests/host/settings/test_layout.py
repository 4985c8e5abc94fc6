"""GPUs, parallel sizes and the model's shape that go together, and those that do not."""

import pytest

from fgrpo_plugin.host.settings.layout import COUNTS, check_counts, check_parallel_sizes, uses_lora
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from tests.support.overrides import HAL, SWITCH, F

MODEL = "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B"  # 28 heads, 4 key-value heads
ULYSSES = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
PACKED = "actor_rollout_ref.model.use_remove_padding=true"
TP3 = "actor_rollout_ref.rollout.tensor_model_parallel_size=3"


@pytest.mark.parametrize("value", ["0", "-1", "null", "2.5", "true"])
@pytest.mark.parametrize("name", COUNTS)
def test_what_verl_divides_by_is_a_whole_number_above_0(stock_config, inputs, name, value):
    config = stock_config(*inputs, SWITCH, f"{name}={value}")
    with pytest.raises(ValueError, match=f"^{name}=.* must be a whole number above 0"):
        check_and_fill_in(config)


def test_verls_own_counts_pass(stock_config):
    check_counts(stock_config())


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
