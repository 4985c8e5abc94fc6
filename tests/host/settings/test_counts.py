"""What verl counts with is a whole number, before anything is divided by it."""

import pytest

from fgrpo_plugin.host.settings.counts import NEEDED, WHERE_SET, check_counts
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from tests.support.overrides import ASYNC, SWITCH

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.mark.parametrize("value", ["0", "-1", "null", "2.5", "true", "abc"])
@pytest.mark.parametrize("name", NEEDED)
def test_what_verl_divides_by_is_above_0(stock_config, name, value):
    config = stock_config(SWITCH, f"{name}={value}")
    with pytest.raises(ValueError, match=rf"^{name}=.* must be a whole number above 0\.$"):
        check_and_fill_in(config)


@pytest.mark.parametrize("name", WHERE_SET)
def test_what_may_be_left_out_has_a_least_value(stock_config, name):
    least = WHERE_SET[name]
    for value in (least, "null"):
        check_counts(stock_config(f"{name}={value}"))
    for value in (least - 1, "x", 1.5):
        with pytest.raises(ValueError, match=f"^{name}={value} must be a whole number .*, or null"):
            check_counts(stock_config(f"{name}={value}"))


@pytest.mark.parametrize(
    "overrides, name",
    [
        (["model_engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_size=0"], "tensor_model_parallel_size=0"),
        (["model_engine=megatron", f"{ACTOR}.megatron.expert_model_parallel_size=null"], "expert_model_parallel"),
        (["model_engine=megatron", "actor_rollout_ref.ref.megatron.context_parallel_size=0"], "ref.megatron.context"),
        (["model_engine=megatron", f"{ACTOR}.megatron.virtual_pipeline_model_parallel_size=0"], "virtual_pipeline"),
        ([f"{ACTOR}.ulysses_sequence_parallel_size=x"], "actor.ulysses_sequence_parallel_size=x"),
        ([f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=0"], "fsdp_config.ulysses_sequence_parallel_size=0"),
        (["model_engine=veomni", f"{ACTOR}.veomni.ulysses_parallel_size=x"], "veomni.ulysses_parallel_size=x"),
        ([*ASYNC, f"{ROLLOUT}.nnodes=0"], "rollout.nnodes=0"),
        ([*ASYNC, f"{ROLLOUT}.n_gpus_per_node=1.5"], "rollout.n_gpus_per_node=1.5"),
        ([*ASYNC, "trainer.v1.separate_async.parameter_sync_step=null"], "parameter_sync_step=None"),
        (["+trainer.v1.sync.parameter_sync_step=0"], "sync.parameter_sync_step=0"),
    ],
)
def test_sizes_of_the_engine_and_mode_that_run(stock_config, overrides, name):
    with pytest.raises(ValueError, match=rf"{name}.* must be a whole number"):
        check_counts(stock_config(*overrides))


def test_sizes_that_belong_to_another_engine_are_not_looked_at(stock_config):
    check_counts(stock_config(f"{ROLLOUT}.nnodes=0"))
    for engine in ("dp", "megatron", "veomni"):
        check_counts(stock_config(f"model_engine={engine}"))
