"""What is written around the weights, and weights that are not the configuration's."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fgrpo_plugin.export import model_folder
from fgrpo_plugin.export.model_folder import check_names, copy_rest, empty_model, linear_modules, write_model


@pytest.fixture
def tiny(tmp_path):
    """A configuration in the form in which verl leaves it in a checkpoint."""
    folder = tmp_path / "huggingface"
    folder.mkdir()
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 16, "hidden_size": 8}
    config |= {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"tie_word_embeddings": True, "attn_implementation": "flash_attention_2"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def weights(model):
    return {name: torch.randn(value.shape) for name, value in model.state_dict().items()}


def test_the_runs_attention_kernel_does_not_have_to_be_here(tiny, tmp_path):
    model = empty_model(tiny)
    assert all(value.is_meta for value in model.parameters())
    (tmp_path / "out").mkdir()
    write_model(weights(model), model, tiny, tmp_path / "out", dtype=None, say=lambda line: None)
    assert "attn_implementation" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_weights_are_written_in_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "SHARD", "1KB")
    model, said = empty_model(tiny), []
    (tmp_path / "out").mkdir()
    given = weights(model)
    expected = {name: value.bfloat16() for name, value in given.items() if name != "lm_head.weight"}
    dtype = write_model(given, model, tiny, tmp_path / "out", dtype=torch.bfloat16, say=said.append)
    size = 2 * sum(value.numel() for value in expected.values()) / 2**20  # two bytes each
    assert dtype == torch.bfloat16 and said == [f"writing {size:.1f} MiB of weights (bfloat16)"]
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(shards) > 1 and set(index.values()) == {shard.name for shard in shards}
    found = {name: value for shard in shards for name, value in load_file(shard).items()}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("value, dtype", [(float("nan"), None), (-float("inf"), None), (1e39, torch.bfloat16)])
def test_weights_of_a_run_that_diverged_are_refused(tiny, tmp_path, value, dtype):
    model = empty_model(tiny)
    given = weights(model)
    given["model.norm.weight"] = given["model.norm.weight"].double()
    given["model.norm.weight"][3] = value
    with pytest.raises(ValueError, match=r"^model\.norm\.weight has entries that are no numbers: .* with --step\.$"):
        write_model(given, model, tiny, tmp_path, dtype=dtype, say=lambda line: None)


def test_weights_of_another_model_are_refused(tiny):
    model = empty_model(tiny)
    good = weights(model)
    check_names(good, model, "here")
    check_names({name: value for name, value in good.items() if name != "lm_head.weight"}, model, "here")  # tied
    with pytest.raises(ValueError, match=r"here: lacks 1 weights of its model, model.norm.weight first"):
        check_names({name: value for name, value in good.items() if name != "model.norm.weight"}, model, "here")
    with pytest.raises(ValueError, match=r"names no v_head.weight \(a critic's head\?\); name an actor's checkpoint"):
        check_names({**good, "v_head.weight": torch.ones(1)}, model, "here")
    with pytest.raises(
        ValueError, match=r"here: model.norm.weight is \(9,\), and \(8,\) by its configuration, .*--step"
    ):
        check_names({**good, "model.norm.weight": torch.ones(9)}, model, "here")


def test_a_configuration_that_is_no_language_models_is_refused(tiny):
    for content in ("{", '{"model_type": "nobody_knows"}', '{"model_type": "clip_vision_model"}'):
        (tiny / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"huggingface") as raised:
            empty_model(tiny)
        assert "\n" not in str(raised.value)
    (tiny / "modeling_own.py").touch()
    with pytest.raises(ValueError, match=r"it has code of its own, which runs with --trust-remote-code\.$"):
        empty_model(tiny)


def test_linear_layers_and_those_of_gpt2_are_told(tiny):
    linear, transposed = linear_modules(empty_model(tiny))
    assert "model.layers.0.mlp.up_proj" in linear and transposed == []
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_embd": 8, "n_head": 2}
    (tiny / "config.json").write_text(json.dumps(config))
    linear, transposed = linear_modules(empty_model(tiny))
    assert "transformer.h.0.attn.c_attn" in transposed and set(transposed) < set(linear)


def test_files_are_copied_byte_for_byte_and_weights_are_not(tiny, tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "modeling_own.py"):
        (tiny / name).write_text(f"{name}'s own")
    for name in ("model.safetensors", "pytorch_model.bin.index.json", "README.md", ".hidden"):
        (tiny / name).touch()
    (tiny / "adapter").mkdir()
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    copy_rest(tiny, whole)
    assert {path.name for path in whole.iterdir()} == {
        *("tokenizer.json", "chat_template.jinja", "generation_config.json", "modeling_own.py")
    }
    assert all(path.read_text() == f"{path.name}'s own" for path in whole.iterdir())
    copy_rest(tiny, part, only=("tokenizer", "chat_template"))
    assert {path.name for path in part.iterdir()} == {"tokenizer.json", "chat_template.jinja"}
