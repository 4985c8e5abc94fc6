"""Activations against a published table and against what autograd keeps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_plugin.model_shape import find_model, shape_from_config
from fgrpo_plugin.plan.activations import layer_activations, logit_bytes, training_activations
from tests.plan.planning import phase, setup
from tests.plan.test_flops import GPT3, MT_NLG


@given(row=st.integers(1, 65536), tp=st.sampled_from([1, 2, 4, 8]))
def test_activations_are_korthikantis_table_2(row, tp):
    h, a = GPT3.hidden, GPT3.heads
    gpt = {"flash": False, "dropout": True, "tp": tp}
    assert layer_activations(GPT3, row, **gpt) == pytest.approx(h * (10 + 24 / tp + 5 * a * row / (h * tp)))
    both = layer_activations(GPT3, row, **gpt, sequence_parallel=True)
    assert both == pytest.approx(h / tp * (34 + 5 * a * row / h))
    selective = layer_activations(GPT3, row, dropout=True, tp=tp, sequence_parallel=True)
    assert selective == pytest.approx(34 * h / tp)


@pytest.mark.parametrize("model, saved", [(GPT3, 0.70), (MT_NLG, 0.65)])
def test_unfused_attention_takes_the_published_share(model, saved):
    """Selective recomputation saves 70 % for GPT-3 and 65 % for the 530B model (arXiv 2205.05198, section 5)."""
    everything = layer_activations(model, 2048, flash=False, dropout=True)
    assert 1 - layer_activations(model, 2048, dropout=True) / everything == pytest.approx(saved, abs=0.005)


def test_activations_are_those_that_autograd_keeps():
    """A layer of transformers' own Qwen2 in float32: the bytes of tensors saved for backward."""
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("qwen2", num_hidden_layers=1, vocab_size=100, **numbers)
    config._attn_implementation = "sdpa"
    rows, tokens = 2, 256
    kept = {}
    for layers in (1, 3):
        config.num_hidden_layers = layers
        config.layer_types = ["full_attention"] * layers
        model = AutoModelForCausalLM.from_config(config)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor, own=own, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = model(input_ids=torch.randint(0, 100, (rows, tokens))).logits
        kept[layers] = sum(seen.values())
        del held
    measured = (kept[3] - kept[1]) / 2 / (rows * tokens)
    shape = shape_from_config(config.to_dict(), "small")
    predicted = layer_activations(shape, tokens, width=4, eager_norms=True, fused_gate=False)
    assert measured == pytest.approx(predicted, rel=0.15)


def test_full_recomputation_keeps_one_tensor_a_layer():
    """2 s b h a layer (arXiv 2205.05198, section 5), and the layer at work."""
    planned, deep = setup(engine="megatron", tp=1, recompute="full"), find_model("Qwen/Qwen2.5-7B")
    twice = replace(planned, model=replace(deep, layers=2 * deep.layers))
    grown = training_activations(twice) - training_activations(planned)
    assert grown == pytest.approx(2 * deep.hidden * deep.layers)


def test_without_recomputation_activations_and_logits_add_up():
    planned = setup(recompute="none")
    parts, (tokens, _) = phase(planned, "training").parts, planned.micro_batch()
    assert parts["logits"] == tokens * logit_bytes(planned)
    assert parts["activations"] == tokens * training_activations(planned)
