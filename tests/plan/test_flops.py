"""FLOPs against published formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_plugin.model_shape import ModelShape, find_model
from fgrpo_plugin.plan.flops import forward_flops, layer_flops, update_flops

GPT3 = ModelShape("GPT-3", 96, 12288, 96, 96, 128, 4 * 12288, 51200, tied=True, gated=False)
MT_NLG = ModelShape("MT-NLG", 105, 20480, 128, 128, 160, 4 * 20480, 51200, tied=True, gated=False)


@pytest.mark.parametrize("model, row", [(GPT3, 2048), (MT_NLG, 2048)])
def test_flops_are_those_of_narayanan_et_al(model, row):
    """96 B s l h^2 (1 + s/6h + V/16lh) with everything but the head recomputed (arXiv 2104.04473, equation 3)."""
    h, layers, vocab = model.hidden, model.layers, model.vocab
    published = 96 * layers * h**2 * (1 + row / (6 * h) + vocab / (16 * layers * h))
    assert update_flops(model, row, recompute="full", causal=False) == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize("model, row", [(GPT3, 2048), (MT_NLG, 4096)])
def test_selective_recomputation_repeats_the_attention_scores(model, row):
    """4 s^2 h a layer and row beside the 72 s h^2 (1 + s/6h + V/12hL) of an update (arXiv 2205.05198, appendix A)."""
    h, layers = model.hidden, model.layers
    published = 72 * layers * h**2 * (1 + row / (6 * h) + model.vocab / (12 * h * layers))
    assert update_flops(model, row, causal=False) == pytest.approx(published, rel=1e-12)
    again = update_flops(model, row, recompute="selective", causal=False)
    assert again == pytest.approx(published + 4 * row * h * layers, rel=1e-12)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B"])
def test_an_update_costs_6_n_d_and_attention(name):
    model, row = find_model(name), 4096
    attention = 6 * row * model.query * model.layers  # half of 12 s per query channel and layer
    # The embedding is looked up, not multiplied; norms and biases are a ten-thousandth.
    multiplied = model.active_parameters - (0 if model.tied else model.embedding)
    assert update_flops(model, row) == pytest.approx(6 * multiplied + attention, rel=1e-3)


@given(row=st.integers(1, 10**6), rank=st.integers(1, 256))
def test_flops_of_updates_are_in_order(row, rank):
    model = find_model("Qwen/Qwen2.5-1.5B")
    forward, update = forward_flops(model, row), update_flops(model, row)
    assert update == pytest.approx(3 * forward)
    assert update_flops(model, row, recompute="full") == pytest.approx(update + layer_flops(model, row))
    assert forward < update_flops(model, row, lora_rank=rank) < update + 6 * model.lora(rank)
