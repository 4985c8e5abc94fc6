"""A checkpoint of verl's worker, exported: the model that was trained, as transformers and PEFT load it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fgrpo_plugin.export.exporting import export_run
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model
from tests.export.conftest import largest, log_probs, worker_log_probs

QUIET = {"say": lambda line: None}


def loaded(folder: Path, dtype: torch.dtype | str = "auto"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def same_tensors(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_full_weights_are_the_actors_to_the_last_bit(runs, tmp_path):
    said: list[str] = []
    folder = export_run(runs.folder / "full", tmp_path / "model", dtype="float32", say=said.append)
    assert said[0].endswith("global_step_7/actor, step 7") and said[-1] == f"written: {folder}"
    trained = dict(runs.found["full"][0]["parameters"])
    base = load_file(runs.model / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in found  # tied
    same_tensors(found, trained)
    assert any(not torch.equal(found[name], base[name]) for name in base)
    model = loaded(folder)
    assert model.dtype == torch.float32 and model.lm_head.weight is model.model.embed_tokens.weight
    assert largest(log_probs(model, runs.folder / "f_grpo2.pt"), worker_log_probs(runs.found["full"])) <= 1e-4


def test_the_folder_has_what_belongs_to_a_model(runs, tmp_path):
    folder = export_run(runs.folder / "full", tmp_path / "model", **QUIET)
    before, tokenizer = AutoTokenizer.from_pretrained(runs.model), AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": "1+1="}]
    assert tokenizer.apply_chat_template(turn) == before.apply_chat_template(turn)
    assert (
        GenerationConfig.from_pretrained(folder).eos_token_id
        == GenerationConfig.from_pretrained(runs.model).eos_token_id
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "attn_implementation" not in config  # the run's kernel is not the model's
    model = loaded(folder)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert "| Step | 7 of 10 |" in (folder / "README.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path != folder]
    assert {oct(path.stat().st_mode)[-3:] for path in folder.iterdir()} == {
        oct((folder / "config.json").stat().st_mode)[-3:]
    }


@pytest.mark.parametrize("run", ["lora", "lora_only"])
def test_a_merged_adapter_gives_the_log_probs_of_the_model_with_its_adapter(runs, tmp_path, figure, run):
    given = {} if run == "lora" else {"base_model": str(runs.model)}
    folder = export_run(runs.folder / run, tmp_path / "model", dtype="float32", **given, **QUIET)
    batch, adapted = runs.folder / "f_grpo2.pt", worker_log_probs(runs.found[run])
    base = log_probs(loaded(runs.model, torch.float32), batch)
    exported = log_probs(loaded(folder), batch)
    apart, error = largest(base, adapted), largest(exported, adapted)
    figure(f"export, {run}", "adapter against base", apart)
    figure(f"export, {run}", "exported against adapter, float32", error)
    assert error <= 1e-4 and error <= apart / 100
    stored, found = load_file(runs.model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert stored.keys() == found.keys() and not any("lora" in name for name in found)
    changed = {name for name in stored if not torch.equal(stored[name], found[name])}
    assert changed == {name for name in stored if "_proj.weight" in name}
    rounded = export_run(runs.folder / run, tmp_path / "bf16", **given, **QUIET)
    half = largest(log_probs(loaded(rounded, torch.float32), batch), adapted)
    figure(f"export, {run}", "exported against adapter, bfloat16 weights", half)
    assert error < half < apart


def test_an_adapter_is_pefts_and_gives_the_same_log_probs(runs, tmp_path):
    from peft import PeftModel

    folder = export_run(runs.folder / "lora", tmp_path / "adapter", adapter=True, base_model=str(runs.model), **QUIET)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 8, None)
    assert settings["target_modules"] == [f"{part}_proj" for part in ("down", "gate", "k", "o", "q", "up", "v")]
    model = PeftModel.from_pretrained(loaded(runs.model, torch.float32), folder)
    adapted = worker_log_probs(runs.found["lora"])
    assert largest(log_probs(model, runs.folder / "f_grpo2.pt"), adapted) <= 1e-4
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not [file.name for file in folder.iterdir() if str(runs.folder).encode() in file.read_bytes()]
    assert "library_name: peft" in (folder / "README.md").read_text()
    alone = export_run(runs.folder / "lora_only", tmp_path / "alone", adapter=True, **QUIET)
    assert json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    same_tensors(load_file(alone / "adapter_model.safetensors"), load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "as-saved", "bfloat16"])
def test_the_precision_is_what_was_asked_for(runs, tmp_path, dtype):
    folder = export_run(runs.folder / "lora", tmp_path / "model", dtype=dtype, **QUIET)
    asked = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {asked}


@pytest.mark.parametrize("given", ["full", "full/global_step_7", "full/global_step_7/actor"])
def test_a_checkpoint_is_found_by_each_of_its_folders(runs, tmp_path, given):
    assert (export_run(runs.folder / given, tmp_path / "model", **QUIET) / "config.json").is_file()


@pytest.mark.long
@pytest.mark.parametrize("run", ["one rank", "FSDP 1, one rank", "FSDP 1", "hybrid"])
def test_other_shardings_are_put_together(other_runs, tmp_path, run):
    folder = export_run(other_runs.folder / run, tmp_path / "model", dtype="as-saved", **QUIET)
    same_tensors(load_file(folder / "model.safetensors"), other_runs.found[run][0]["parameters"])


@pytest.mark.long
@pytest.mark.parametrize("run, bound", [("LoRA, one rank", 1e-4), ("LoRA, bf16", 5e-2)])
def test_an_adapter_of_one_rank_is_merged(other_runs, tmp_path, figure, run, bound):
    folder = export_run(other_runs.folder / run, tmp_path / "model", dtype="as-saved", **QUIET)
    batch, adapted = other_runs.folder / "f_grpo1.pt", worker_log_probs(other_runs.found[run])
    error = largest(log_probs(loaded(folder), batch), adapted)
    figure(f"export, {run}", "exported against adapter, as saved", error)
    assert error <= bound


@pytest.mark.long
def test_experts_are_written_one_by_one_as_hugging_face_names_them(mixture, tmp_path):
    folder = export_run(mixture.folder / "full", tmp_path / "model", dtype="float32", **QUIET)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == load_file(mixture.model / "model.safetensors").keys()
    same_tensors(found, mixture.found["full"][0]["parameters"])
    model = loaded(folder)
    assert largest(log_probs(model, mixture.folder / "f_grpo2.pt"), worker_log_probs(mixture.found["full"])) <= 1e-4


@pytest.mark.long
def test_verls_own_merger_writes_the_base_model_for_lora(runs, tmp_path):
    """Its issue 7285: why the adapter is merged here. Once verl merges it, this fails and says so."""
    actor = runs.folder / "lora" / "global_step_7" / "actor"
    words = ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
    subprocess.run(
        [sys.executable, *words, "--target_dir", str(tmp_path)], check=True, capture_output=True, env=dict(os.environ)
    )
    found, base = load_file(tmp_path / "model.safetensors"), load_file(runs.model / "model.safetensors")
    assert all(torch.equal(value, base[name].bfloat16()) for name, value in found.items())
    ours = load_file(export_run(actor, tmp_path / "ours", **QUIET) / "model.safetensors")
    assert any(not torch.equal(value, base[name].bfloat16()) for name, value in ours.items())


@pytest.fixture
def small(tmp_path):
    """A checkpoint of one rank in verl's layout, of a model without training."""
    actor = tmp_path / "run" / "global_step_3" / "actor"
    huggingface = actor / "huggingface"
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 0)
    save_model(model, tokenizer, huggingface)
    (huggingface / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()), actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    return actor


def test_a_checkpoint_without_a_tokenizer_is_refused(small, tmp_path):
    for file in (small / "huggingface").iterdir():
        if file.name != "config.json":
            file.unlink()
    with pytest.raises(ValueError, match=r"huggingface: holds no tokenizer; copy that of the model that was trained"):
        export_run(tmp_path / "run", tmp_path / "model", **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("base, linked", [("folder", None), ("a/model", "a/model"), (None, None)])
def test_the_card_links_a_model_of_a_hub_and_no_folder(small, tmp_path, base, linked):
    if base == "folder":
        base = str(tmp_path / "models" / "base")
        (tmp_path / "models" / "base").mkdir(parents=True)
    card = (export_run(small, tmp_path / "model", base_model=base, **QUIET) / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == linked
    assert str(tmp_path) not in card


def test_a_base_model_named_with_a_tilde_is_not_replaced(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    with pytest.raises(ValueError, match=r"--output=.*base: holds .*base, which is read; name another folder\.$"):
        export_run(small, tmp_path / "base", base_model="~/base", overwrite=True, **QUIET)


@pytest.mark.parametrize(
    "run, given, sentence",
    [
        ("full", {"adapter": True}, r"--adapter with .*, which was trained in full; leave --adapter out\.$"),
        ("full", {"dtype": "int8"}, r"--dtype=int8: choose one of bfloat16, float32, as-saved\.$"),
        ("full", {"step": 9}, r"--step=9: .* has no such checkpoint; it has steps 7\.$"),
        ("lora_only", {}, r"holds LoRA's adapter without the model; name .* with --base-model, or .* --adapter\.$"),
        ("lora_only", {"base_model": "/nowhere"}, r"--base-model=/nowhere: there is no model \(config.json\) there"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(runs, tmp_path, run, given, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        export_run(runs.folder / run, tmp_path / "model", **given, **QUIET)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
