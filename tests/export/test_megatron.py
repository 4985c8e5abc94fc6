"""Megatron's checkpoints: the bridge's files, and its own shards under Hugging Face's names."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fgrpo_plugin.export.exporting import export_run
from fgrpo_plugin.export.megatron import load_shards
from tests.export.conftest import largest, log_probs, worker_log_probs


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.mark.long
@pytest.mark.parametrize("run", ["bridge", "shards, tensor", "shards, pipeline"])
def test_the_model_is_the_one_that_megatron_trained(megatron, tmp_path, run):
    given = {} if run == "bridge" else {"base_model": str(megatron.model)}
    folder = export_run(megatron.folder / run, tmp_path / "model", dtype="as-saved", say=quiet, **given)
    found, base = load_file(folder / "model.safetensors"), load_file(megatron.model / "model.safetensors")
    trained = megatron.found[run][0]["parameters"]
    assert found.keys() == trained.keys() == base.keys()
    assert all(torch.equal(found[name], value) for name, value in trained.items())
    assert any(not torch.equal(found[name], base[name]) for name in base)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert largest(log_probs(model, megatron.folder / "f_grpo1.pt"), worker_log_probs(megatron.found[run])) <= 1e-4
    assert "| Engine | Megatron |" in (folder / "README.md").read_text()


@pytest.mark.long
def test_shards_without_their_model_or_with_another_are_refused(megatron, runs, tmp_path):
    with pytest.raises(ValueError, match=r"holds Megatron's shards without the model's configuration and tokenizer"):
        export_run(megatron.folder / "shards, tensor", tmp_path / "model", say=quiet)
    with pytest.raises(ValueError, match=r"by its configuration|do not fit the shards"):
        export_run(megatron.folder / "shards, tensor", tmp_path / "model", base_model=str(runs.model), say=quiet)
    assert not (tmp_path / "model").exists()


def test_an_architecture_that_is_not_known_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    with pytest.raises(ValueError, match=r"shards of a qwen3_moe are not known .*: hf_model in .*save_contents\.$"):
        load_shards(SimpleNamespace(actor=tmp_path), tmp_path, quiet)


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"model_type": "qw', r"config\.json cannot be read; copy it anew"),
        ("[]", r"config\.json cannot be read; copy it anew"),
        ('{"model_type": "qwen2", "num_attention_heads": 2}', r"config\.json names no vocab_size; copy it anew"),
        ('{"model_type": "qwen2", "vocab_size": 2}', r"config\.json names no num_attention_heads; copy it anew"),
    ],
)
def test_a_spoilt_configuration_is_named(tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        load_shards(SimpleNamespace(actor=tmp_path), tmp_path, quiet)


def test_queries_keys_and_values_are_taken_apart_by_their_groups(tmp_path):
    """Rows of a group: its queries, then its key, then its value; written here by torch's own checkpoint writer."""
    import torch.distributed.checkpoint as dcp

    heads, groups, width, vocabulary = 4, 2, 3, 5
    config = {"model_type": "qwen2", "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": width}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary, "tie_word_embeddings": True}))
    rows = [[f"{kind}{g}" for kind in ("q", "q", "k", "v") for _ in range(width)] for g in range(groups)]
    marks = [mark for group in rows for mark in group]
    qkv = torch.arange(2.0 * len(marks)).view(2, len(marks), 1)
    shards = {"decoder.layers.self_attention.linear_qkv.weight": qkv, "output_layer.weight": torch.ones(8, 1)}
    shards["embedding.word_embeddings.weight"] = torch.ones(8, 1)
    folder = tmp_path / "model" / "dist_ckpt"
    dcp.save(shards, checkpoint_id=folder, no_dist=True)
    found = load_shards(SimpleNamespace(actor=tmp_path), tmp_path, quiet)
    assert found["model.embed_tokens.weight"].shape == (vocabulary, 1) and "lm_head.weight" not in found
    for layer in range(2):
        for kind in "qkv":
            expected = [qkv[layer, i, 0] for i, mark in enumerate(marks) if mark[0] == kind]
            assert found[f"model.layers.{layer}.self_attn.{kind}_proj.weight"].squeeze(1).tolist() == expected
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match=r"dist_ckpt is half-written \(.*No such file.*; choose an earlier step .*$"):
        load_shards(SimpleNamespace(actor=tmp_path), tmp_path, quiet)
    (folder / ".metadata").write_bytes(b"cut")
    with pytest.raises(ValueError, match="dist_ckpt is half-written") as raised:
        load_shards(SimpleNamespace(actor=tmp_path), tmp_path, quiet)
    assert "\n" not in str(raised.value)
