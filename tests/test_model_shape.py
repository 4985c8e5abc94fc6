"""Parameter counts against published ones and against transformers' own models, FLOPs against published forms."""

import json

import pytest
import torch

from fgrpo_plugin.model_shape import find_model, known_models, shape_from_config


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


NAMES = {  # as people write them -> parameters that are published with the checkpoint
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "qwen2.5-7b": 7_615_616_512,
    "Qwen/Qwen2.5-Math-7B-Instruct": 7_615_616_512,
    "Qwen2.5-7B-Instruct-1M": 7_615_616_512,
    "Qwen2.5-14B-Instruct-1M": 14_770_033_664,
    "Qwen2.5-Coder-0.5B": 494_032_768,
    "Qwen2.5-Coder-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-Coder-3B": 3_085_938_688,
    "qwen2.5-coder-32b-instruct": 32_763_876_352,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,  # its head is not tied, as its base model's is
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Llama-70B": 70_553_706_496,
    "DeepSeek-R1-0528-Qwen3-8B": 8_190_735_360,
    "SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", NAMES)
def test_models_are_found_by_the_names_that_people_write(name):
    assert find_model(name).parameters == NAMES[name]
    assert find_model(name).name.lower().endswith(name.lower())


def test_no_name_is_in_the_table_twice():
    names = [known for name, entry in known_models().items() for known in (name, *entry.get("same", []))]
    assert len({name.split("/")[1].lower() for name in names}) == len(names)


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


def test_an_unknown_model_is_answered_with_near_ones_and_how_to_describe_it():
    with pytest.raises(ValueError, match=r"gpt-5 is neither known .* known, .*: Qwen/.* the path of its config.json"):
        find_model("gpt-5")
    for written, meant in [
        ("Qwen2.5-7B-Instuct", "Qwen/Qwen2.5-7B-Instruct"),
        ("DeepSeek-R1-Distil-Qwen-7B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ("SmolLM-360M", "HuggingFaceTB/SmolLM2-360M"),
    ]:
        with pytest.raises(ValueError, match=f"nearest: .*{meant}.*; known"):
            find_model(written)
