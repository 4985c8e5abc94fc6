"""A model's files tell it from another's, and are read once."""

import hashlib
import os

import pytest

from fgrpo_plugin.preference import model_files
from fgrpo_plugin.preference.model_files import folder_fingerprint, model_fingerprint, weight_files

SETTING = "model.path"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "modeling_own.py", "tokenizer.json", "README.md"):
        (folder / name).write_text(f"{name} 1")
    (folder / "parts").mkdir()
    (folder / "parts" / "attention.py").write_text("one")
    return folder


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "hashes.json"


@pytest.mark.parametrize(
    "name, with_weights, without",
    [
        ("config.json", True, True),
        ("modeling_own.py", True, True),
        ("parts/attention.py", True, True),
        ("model.safetensors", True, False),
        ("adapter_config.json", True, True),  # transformers adds an adapter that it finds there
        ("model-00002.safetensors", True, False),
        ("tokenizer.json", False, False),
        ("README.md", False, False),
        ("generation_config.json", False, False),
        (".gitattributes", False, False),
    ],
)
def test_what_a_model_is_made_of_changes_the_fingerprint_and_nothing_else(model, memory, name, with_weights, without):
    before = [model_fingerprint(str(model), SETTING, memory, weights=weights) for weights in (True, False)]
    (model / name).write_text("another content")
    after = [model_fingerprint(str(model), SETTING, memory, weights=weights) for weights in (True, False)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [with_weights, without]


def test_files_that_change_places_are_another_model(model, memory):
    before = model_fingerprint(str(model), SETTING, memory)
    (model / "config.json").rename(model / "x.json")
    assert model_fingerprint(str(model), SETTING, memory) != before


def test_a_copy_elsewhere_is_the_same_model(model, memory, tmp_path):
    other = tmp_path / "moved"
    before = model_fingerprint(str(model), SETTING, memory)
    model.rename(other)
    assert model_fingerprint(str(other), SETTING, memory) == before


def test_content_is_read_once_and_again_where_size_and_time_were_kept(model, memory, monkeypatch):
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (read.append(file.name), digest(file, name))[1])
    first = model_fingerprint(str(model), SETTING, memory)
    count = len(read)
    assert count == 4 and model_fingerprint(str(model), SETTING, memory) == first and len(read) == count
    weights = model / "model.safetensors"
    status = weights.stat()
    weights.write_text("model.safetensors 2")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync and cp -p leave it
    assert weights.stat().st_size == status.st_size and weights.stat().st_mtime_ns == status.st_mtime_ns
    assert model_fingerprint(str(model), SETTING, memory) != first and len(read) == count + 1


@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_a_damaged_memory_is_made_anew(model, memory, damage):
    first = model_fingerprint(str(model), SETTING, memory)
    memory.write_text(damage)
    assert model_fingerprint(str(model), SETTING, memory) == first


def test_gigabytes_are_announced_before_they_are_read(model, memory, monkeypatch):
    said = []
    monkeypatch.setattr(model_files, "_LONG_HASH", 10)
    model_fingerprint(str(model), SETTING, memory, say=said.append)
    assert len(said) == 1 and str(model) in said[0]
    model_fingerprint(str(model), SETTING, memory, say=said.append)  # known by now
    assert len(said) == 1


def test_every_file_of_a_checkpoint_counts(tmp_path, memory):
    checkpoint = tmp_path / "dist"
    (checkpoint / "iter_1").mkdir(parents=True)
    (checkpoint / "iter_1" / "__0_0.distcp").write_text("one")
    first = folder_fingerprint(str(checkpoint), "path", memory)
    (checkpoint / "iter_1" / "__0_0.distcp").write_text("two")
    assert folder_fingerprint(str(checkpoint), "path", memory) != first


def test_what_is_not_there_is_an_error_with_a_name(tmp_path, memory):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^model.path={tmp_path}: holds no weight files"):
        model_fingerprint(str(tmp_path), SETTING, memory)
    assert model_fingerprint(str(tmp_path), SETTING, memory, weights=False)
    with pytest.raises(ValueError, match="nobody/nothing: neither a local folder nor in the local hub cache"):
        model_fingerprint("nobody/nothing", SETTING, memory)
    with pytest.raises(ValueError, match="no such folder, or it is empty"):
        folder_fingerprint(str(tmp_path / "none"), "path", memory)


def test_code_behind_a_link_counts(model, memory, tmp_path):
    elsewhere = tmp_path / "shared_code"
    elsewhere.mkdir()
    (elsewhere / "rope.py").write_text("one")
    (model / "linked").symlink_to(elsewhere)
    before = model_fingerprint(str(model), SETTING, memory)
    (elsewhere / "rope.py").write_text("two")
    assert model_fingerprint(str(model), SETTING, memory) != before


def test_code_of_another_repository_is_known_by_its_commit(model, memory):
    (model / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "nobody/code--modeling.Model"}}')
    with pytest.raises(ValueError, match="nobody/code: neither a local folder nor in the local hub cache"):
        model_fingerprint(str(model), SETTING, memory)
    (model / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_own.Model"}}')
    assert "+" not in model_fingerprint(str(model), SETTING, memory)


def test_what_another_run_has_remembered_meanwhile_is_kept(model, memory):
    import json

    model_fingerprint(str(model), SETTING, memory)
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(known | {"theirs": "abc"}))
    (model / "model.safetensors").write_text("model.safetensors 9")
    model_fingerprint(str(model), SETTING, memory)
    assert json.loads(memory.read_text()).keys() > known.keys() | {"theirs"}


def test_weight_files_are_those_with_weights_alone(tmp_path):
    for name in ("model-1.safetensors", "a.bin", "config.json", "optimizer.pt", "training_args.bin", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "x.safetensors").mkdir()
    assert [file.name for file in weight_files(tmp_path)] == ["a.bin", "model-1.safetensors"]
    (tmp_path / "tokenizer").mkdir()
    assert weight_files(tmp_path / "tokenizer") == []


def test_hashes_that_cannot_be_remembered_are_said_and_the_model_is_known_all_the_same(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "file").write_text("")
    told = []
    found = model_fingerprint(str(tmp_path / "model"), "--model", tmp_path / "file" / "hashes.json", say=told.append)
    assert found == model_fingerprint(str(tmp_path / "model"), "--model", tmp_path / "hashes.json")
    (line,) = told
    assert line.startswith(f"{tmp_path / 'file' / 'hashes.json'} cannot be written (") and "read again" in line
