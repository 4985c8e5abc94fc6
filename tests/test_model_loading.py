"""A model is loaded whole, in the precision that is asked for, or refused in one sentence; transformers is quiet."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from fgrpo_plugin.model_loading import load_causal_lm, parameters_in, quiet_transformers
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model


@pytest.fixture
def folder(tmp_path):
    return save_model(build_model(build_tokenizer(), 0), build_tokenizer(), tmp_path / "model")


def test_a_model_has_its_files_weights_and_is_for_evaluation(folder):
    ids = torch.tensor([[1, 2, 3]])
    expected = build_model(build_tokenizer(), 0).eval()(input_ids=ids).logits
    loaded = load_causal_lm(str(folder), "auto", "--model")
    assert torch.equal(loaded(input_ids=ids).logits, expected) and not loaded.training
    low = load_causal_lm(str(folder), torch.bfloat16, "--model", attention="eager")
    assert {value.dtype for value in low.parameters()} == {torch.bfloat16}
    assert low.config._attn_implementation == "eager"


def test_a_folder_that_lacks_weights_or_is_damaged_is_refused_in_one_sentence(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"--model=.*: its files lack model.norm.weight and 0 more; name a whole"):
        load_causal_lm(str(folder), "auto", "--model")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"^--model=.* cannot be loaded \(.*header") as raised:
        load_causal_lm(str(folder), "auto", "--model")
    assert "\n" not in str(raised.value)


def test_a_models_own_code_is_not_run_unasked(folder):
    config = folder / "config.json"
    mapped = '"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}'
    config.write_text("{" + mapped + "}")
    (folder / "own.py").write_text(f"open({str(folder / 'mark')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_lm(str(folder), "auto", "--model")
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("bars", [True, False])
def test_what_transformers_says_is_as_it_was_afterwards(bars):
    level, found = transformers_logging.INFO, transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(level)
    before = transformers_logging.is_progress_bar_enabled()
    (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
    try:
        with pytest.raises(RuntimeError), quiet_transformers():
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
            assert not transformers_logging.is_progress_bar_enabled()
            raise RuntimeError
        assert transformers_logging.get_verbosity() == level
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        transformers_logging.set_verbosity(found)
        (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()


def test_parameters_are_counted_by_the_files_headers(folder, tmp_path):
    file = folder / "model.safetensors"
    count = sum(value.numel() for value in load_file(file).values())
    assert parameters_in([file]) == count > 0
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(()), "c": torch.zeros(0, 4)}, tmp_path / "more.safetensors")
    assert parameters_in([file, tmp_path / "more.safetensors"]) == count + 16
    (tmp_path / "old.bin").write_bytes(b"x" * 2001)
    assert parameters_in([tmp_path / "old.bin", file]) == 1000 + count
    assert parameters_in([]) == 0


@pytest.mark.parametrize("content", [b"", b"cut off", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"])
def test_a_damaged_header_is_named(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is no safetensors file, or is cut off; write it anew\.$"):
        parameters_in([file])
