"""Times against bounds computed by hand, and what must lengthen or shorten them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.flops import forward_flops, update_flops
from fgrpo_plugin.plan.gpus import find_gpu
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun
from fgrpo_plugin.plan.roofline import Roofline, step_time

IDEAL = Assumptions(matmul=1.0, bandwidth=1.0, network=1.0, decode_step_ms=0.0, latency_us=0.0)
H100 = find_gpu("H100")
FAST = replace(H100, bandwidth_gb=1e12, link_gb=1e12, network_gb=1e12, host_gb=1e12)


def setup(model="Qwen/Qwen2.5-7B", gpu=H100, **changes):
    return PlannedRun(model=find_model(model), gpu=gpu, **changes)


def test_decoding_one_row_reads_the_weights_once():
    """8.03e9 parameters in bf16 at 3.35e12 bytes/s: 4.8 ms a token; 1000 tokens of context add 128 KiB each."""
    planned = setup("meta-llama/Llama-3.1-8B")
    seconds = Roofline(planned, IDEAL).decode_step(1, 1000)
    assert seconds == pytest.approx((2 * 8.030e9 + 1000 * 131072) / 3.35e12, rel=1e-3)


def test_decoding_many_rows_is_bound_by_arithmetic():
    """Beyond peak / bandwidth = 295 FLOP a byte: rows * 2 N > 295 * 2 N bytes of weights, for short contexts."""
    planned = setup("meta-llama/Llama-3.1-8B")
    roof = Roofline(planned, IDEAL)
    assert roof.decode_step(100, 1) == pytest.approx(roof.decode_step(1, 1), rel=0.01)
    flops = 1000 * forward_flops(planned.model, 1, causal=False)
    assert roof.decode_step(1000, 1) == pytest.approx(flops / 989e12)


def test_few_rows_read_few_experts():
    """One row reads 8 of 128 experts: 3.35e9 parameters; many rows read them all."""
    planned = setup("Qwen/Qwen3-30B-A3B", utilization=0.9)
    roof, model = Roofline(planned, IDEAL), planned.model
    assert roof.decode_step(1, 1) == pytest.approx(2 * model.active_parameters / 3.35e12, rel=1e-3)
    assert roof.decode_step(200, 1) == pytest.approx(2 * model.parameters / 3.35e12, rel=0.01)


def test_generation_takes_its_steps():
    """128 rows a replica, all at once: as many steps as the longest response; 32 at once: four times as many."""
    planned = setup(prefix_caching=True)
    roof = Roofline(planned, IDEAL)
    prefill = 32 * 512 * forward_flops(planned.model, 512) / 989e12
    assert roof.generation() == pytest.approx(prefill + 1024 * roof.decode_step(128, 1024))
    few = Roofline(replace(planned, max_rows=32), IDEAL)
    assert few.generation() == pytest.approx(prefill + 4096 * roof.decode_step(32, 1024))
    short = Roofline(replace(planned, mean_response=256), IDEAL)  # the longest row still takes 1024 steps
    assert short.generation() == pytest.approx(prefill + 1024 * roof.decode_step(32, 640))


def test_an_update_is_its_arithmetic_where_everything_else_is_free():
    for changes in ({}, {"recompute": "none"}, {"engine": "megatron", "tp": 4}, {"sp": 4}, {"lora_rank": 64}):
        planned = setup(gpu=FAST, **changes)
        flops = update_flops(planned.model, 1536, recompute=planned.recompute, lora_rank=planned.lora_rank)
        expected = 1024 * 1536 * flops / (8 * 989e12)
        assert Roofline(planned, IDEAL).update() == pytest.approx(expected, rel=1e-3), changes
        without = update_flops(planned.model, 1536, lora_rank=planned.lora_rank)
        assert step_time(planned, IDEAL).utilization == pytest.approx(without / flops, rel=1e-3)


def test_the_pipeline_bubble_is_that_of_narayanan_et_al():
    """(p - 1)/m of the ideal time, and a v-th of it with v stages a GPU (arXiv 2104.04473, section 2.2)."""
    one = setup(gpu=FAST, engine="megatron", dynamic_batch=False, micro_rows=4, recompute="none")
    four = replace(one, pp=4)
    ideal = Roofline(one, IDEAL).update()
    assert four.micro_batch()[1] == 128
    assert Roofline(four, IDEAL).update() == pytest.approx(ideal * (1 + 3 / 128), rel=1e-3)
    assert Roofline(replace(four, virtual_pp=7), IDEAL).update() == pytest.approx(ideal * (1 + 3 / 7 / 128), rel=1e-3)


def test_slow_links_bound_an_update_by_what_fsdp_sends():
    """Two gathers of the bf16 weights and one scatter of float32 gradients a micro-batch: 8 bytes a parameter."""
    planned = setup(gpu=replace(H100, link_gb=0.1))
    _, count = planned.micro_batch()
    sent = count * 8 * planned.model.parameters * 7 / 8
    assert Roofline(planned, IDEAL).update() == pytest.approx(sent / 0.1e9, rel=1e-2)


def test_nodes_share_their_networks():
    """Two nodes of 8: half of the data enters each node through 8 cards."""
    roof = Roofline(setup(nodes=2, gpu=replace(H100, link_gb=1e6)), IDEAL)
    assert roof.collective(1e9, 16) == pytest.approx(1e9 / 2 / (8 * 50e9), rel=1e-3)
    assert roof.collective(1e9, 1) == 0
    assert Roofline(setup(), IDEAL).collective(1e9, 8) == pytest.approx(1e9 * 7 / 8 / 450e9)


def test_phases_are_those_that_the_algorithm_has():
    assert list(step_time(setup(), IDEAL).phases) == ["generation", "reference", "update", "resharding"]
    grpo = step_time(setup(reference=False, old_log_prob=True), IDEAL).phases
    assert list(grpo) == ["generation", "old log-probs", "update", "resharding"]
    alone = step_time(setup(lam=1.0, preference_rows=64), IDEAL)
    assert alone.phases["reference"] == 0 and "generation" not in alone.phases and alone.new_tokens == 0


def test_gpus_that_generate_alone_do_so_beside_training():
    together = step_time(setup(), IDEAL)
    apart = step_time(setup(rollout_gpus=8), IDEAL)
    assert apart.phases == together.phases and apart.gpus == 16
    generation = together.phases["generation"]
    assert apart.total == max(generation, together.total - generation) < together.total
    assert step_time(setup(rollout_gpus=16), IDEAL).phases["generation"] < generation


def test_preference_rows_cost_what_as_many_rolled_out_rows_do():
    half = setup(gpu=FAST, prompts=128, minibatch=128, lam=0.5, preference_rows=512)
    assert Roofline(half, IDEAL).update() == pytest.approx(Roofline(setup(gpu=FAST), IDEAL).update())


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(["matmul", "bandwidth", "network"]),
    lower=st.floats(0.1, 1),
    engine=st.sampled_from(["fsdp2", "megatron"]),
    offload=st.booleans(),
)
def test_worse_efficiency_never_shortens_a_phase(name, lower, engine, offload):
    planned = setup(engine=engine, param_offload=offload, nodes=2)
    better, worse = step_time(planned, IDEAL), step_time(planned, replace(IDEAL, **{name: lower}))
    for phase, seconds in better.phases.items():
        assert worse.phases[phase] >= seconds * (1 - 1e-9)


@pytest.mark.parametrize("name, value", [("matmul", 1.5), ("network", 0.0), ("latency_us", -1.0)])
def test_impossible_assumptions_are_refused(name, value):
    with pytest.raises(ValueError, match=f"--assume {name}={value} must be"):
        Assumptions(**{name: value})
