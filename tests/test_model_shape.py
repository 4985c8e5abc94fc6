"""Parameter counts against published ones and against transformers' own models, FLOPs against published forms."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_plugin.model_shape import ModelShape, find_model, known_models, shape_from_config
from fgrpo_plugin.plan.flops import forward_flops, layer_flops, update_flops
from fgrpo_plugin.plan.gpus import find_gpu, known_gpus

GPT3 = ModelShape("GPT-3", 96, 12288, 96, 96, 128, 4 * 12288, 51200, tied=True, gated=False)
MT_NLG = ModelShape("MT-NLG", 105, 20480, 128, 128, 160, 4 * 20480, 51200, tied=True, gated=False)


@pytest.mark.parametrize("name", known_models())
def test_parameters_are_the_published_ones(name):
    entry, model = known_models()[name], find_model(name)
    counted = model.parameters + (model.embedding if entry.get("stores_tied_head") else 0)
    assert counted == entry["published"]  # far inside of half a percent
    if "published_active" in entry:
        assert model.active_parameters == pytest.approx(entry["published_active"], rel=0.02)  # published to two digits
    else:
        assert model.active_parameters == model.parameters


SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 1000}
VARIANTS = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 96, "attention_bias": True, "mlp_bias": True},
    "mistral": {"num_key_value_heads": 4, "intermediate_size": 96, "head_dim": 32},
    "mixtral": {"num_key_value_heads": 2, "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 96, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 32},
    "qwen2_moe": {
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 80,
    },
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_parameters_are_those_of_transformers(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SMALL | VARIANTS[kind])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_from_config(config.to_dict(), kind).parameters == sum(p.numel() for p in model.parameters())


def test_lora_counts_what_peft_adds():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("qwen2", **SMALL | VARIANTS["qwen2"])
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=8, target_modules="all-linear"))
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_from_config(config.to_dict(), "small").lora(8) == added


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "qwen2.5-7b", "Qwen/Qwen2.5-Math-7B-Instruct"])
def test_models_are_found_by_name(name):
    assert find_model(name).parameters == 7_615_616_512


def test_models_are_found_by_path(tmp_path):
    config = known_models()["Qwen/Qwen3-30B-A3B"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        assert find_model(str(path)).parameters == 30_532_122_624


@pytest.mark.parametrize(
    "content, said",
    [
        ("{}", "model_type=None is not one of llama, .* describe it by a config.json"),
        ('{"model_type": "mamba"}', "model_type='mamba' is not one of"),
        ('{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}', "has no 'num_hidden_layers'; add it"),
        ("layers: 3", "is not JSON; give a Hugging Face config.json"),
        (json.dumps(SMALL | VARIANTS["qwen3_moe"] | {"model_type": "qwen3_moe", "mlp_only_layers": [0]}), "mlp_only"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        find_model(str(tmp_path))


def test_an_unknown_model_says_how_to_describe_it():
    with pytest.raises(ValueError, match=r"gpt-5 is neither known .* known: Qwen/.* give the path of its config.json"):
        find_model("gpt-5")


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


def test_gpus_are_found_by_any_of_their_names():
    assert find_gpu("h100") == find_gpu("H100-SXM") == find_gpu("H100-80GB")
    assert find_gpu("A100").memory_gib == find_gpu("A100-80GB").memory_gib > find_gpu("A100-40GB").memory_gib
    assert {find_gpu(name).name for name in known_gpus()} == set(known_gpus())


def test_a_gpu_is_described_by_a_file_or_by_options(tmp_path):
    numbers = {"memory_gib": 96, "tflops": 148, "bandwidth_gb": 4000, "link_gb": 450, "network_gb": 50, "host_gb": 64}
    file = tmp_path / "h20.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in numbers.items()))
    assert find_gpu(str(file)) == find_gpu("h20", **numbers)
    assert find_gpu("H100", memory_gib=94).memory_gib == 94
    with pytest.raises(ValueError, match=r"H20 is not known; known: A100-40GB.*a YAML file .*--memory-gib --tflops"):
        find_gpu("H20", memory_gib=96)
    file.write_text("memory_gib: 96")
    with pytest.raises(ValueError, match=r"bandwidth_gb, .* is missing"):
        find_gpu(str(file))
    file.write_text("memory_gib: 96\ntflop: 1")
    with pytest.raises(ValueError, match="is missing"):
        find_gpu(str(file))
    with pytest.raises(ValueError, match="no such file"):
        find_gpu(str(tmp_path / "other.yaml"))
    with pytest.raises(ValueError, match="tflops=0 must be a number > 0"):
        find_gpu("H100", tflops=0)
