"""What a reference cannot rank: log-probs that are no numbers, tokens and lengths beyond the model, too many logits."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgrpo_plugin.preference import reference_ranking
from fgrpo_plugin.preference.reference_ranking import Asked, rank_by_reference
from fgrpo_plugin.preference.tokens import TokenRow
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model
from tests.preference.test_reference_ranking import PAIRS, WIDE, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(build_model(build_tokenizer(), 0), build_tokenizer(), tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def rows(tmp_path):
    return tokens(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture(autouse=True)
def no_default_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(reference_ranking, "DEFAULT_FOLDER", tmp_path / "default")


def test_log_probs_that_are_no_numbers_rank_nothing(folder, rows, tmp_path):
    spoilt = save_model(build_model(build_tokenizer(), 0), build_tokenizer(), tmp_path / "model")
    weights = load_file(spoilt / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    found = rank_by_reference(rows, WIDE, Asked(spoilt, 3))
    said = f"skipped: --model={spoilt}: its log-probs are not finite in float32; look at its weights"
    assert found.found is None and found.lines == [said]


def test_tokens_beyond_the_models_embeddings_are_said(folder, rows):
    row = rows[0]
    rows = [TokenRow(row.prompt_ids, [264, 1], row.desirable, row.pair, ""), *rows[1:]]
    (line,) = rank_by_reference(rows, WIDE, Asked(folder, 9)).lines
    assert line.startswith(f"skipped: --model={folder}: its tokenizer gives token 264 and the model has 264; save the")


def test_pairs_longer_than_the_models_window_are_left_out(folder, rows):
    """512 tokens, prompt and response together, are the most that the model reads."""
    prompt, long = rows[0].prompt_ids, []
    for more in (0, 1):
        response = [97] * (512 - len(prompt) + more)
        long += [TokenRow(prompt, response, True, f"long{more}", ""), TokenRow(prompt, [98], False, f"long{more}", "")]
    found = rank_by_reference([*rows, *long], WIDE, Asked(folder, 100))
    assert found.of == len(found.found.lead) == 10
    assert found.lines[0] == "1 pairs are left out: longer than the model's window, 512 tokens"
    found = rank_by_reference(long[2:], WIDE, Asked(folder, 100))
    assert found.found is None and found.lines[-1] == "skipped: no pair fits into the model's window"


def test_logits_that_do_not_fit_are_not_made(folder, rows, monkeypatch):
    longest = max(row.response_length for row in rows)
    (file,) = folder.glob("*.safetensors")
    need = 4 * sum(value.numel() for value in load_file(file).values()) + 2**30
    logits = 12 * longest * 264
    for free, fits in ((logits, True), (logits - 1, False)):
        answers = iter([need, free])
        monkeypatch.setattr(
            reference_ranking.psutil, "virtual_memory", lambda answers=answers: SimpleNamespace(available=next(answers))
        )
        found = rank_by_reference(rows, WIDE, Asked(folder, 9))
        assert (found.found is not None) == fits
    sentence = f"skipped: the logits of a response of {longest} tokens take about 0.0 GiB, and 0.0 GiB are free; leave"
    assert found.lines == [f"{sentence} it out with --max-response-length"]


def test_a_cpu_without_memory_says_so_in_an_error_of_no_class_of_its_own(folder, rows, monkeypatch):
    monkeypatch.setattr(reference_ranking, "response_log_probs", lambda *given, **more: torch.empty(2**58))
    (line,) = rank_by_reference(rows, WIDE, Asked(folder, 3)).lines
    assert line == "skipped: the CPU has too little memory for a pass; use a larger one"

    def broken(*given, **more):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(reference_ranking, "response_log_probs", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        rank_by_reference(rows, WIDE, Asked(folder, 3))
