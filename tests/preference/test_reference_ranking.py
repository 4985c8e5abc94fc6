"""Which pairs a reference ranks, from a cache or by the model, and what is skipped; the log-probs are a run's."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgrpo_plugin.preference import reference_ranking
from fgrpo_plugin.preference.files import read_preferences
from fgrpo_plugin.preference.loading import RowSettings
from fgrpo_plugin.preference.model_files import model_fingerprint
from fgrpo_plugin.preference.ranking import pairs_of
from fgrpo_plugin.preference.reference_cache import ReferenceCache
from fgrpo_plugin.preference.reference_ranking import Asked, fitting, is_of_folder, rank_by_reference
from fgrpo_plugin.preference.tokens import TokenRow, encode
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model
from tests.preference.conftest import lines
from tests.preference.test_model_log_probs import one_at_a_time

WIDE = RowSettings(sys.maxsize, sys.maxsize, {})
PAIRS = [
    {"prompt": f"{i}+1=", "chosen": f"{i}" * (i % 3 + 1), "rejected": f"{i + 7}{i}" * (i % 2 + 1)} for i in range(9)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(build_model(build_tokenizer(), 0), build_tokenizer(), tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def rows(tmp_path):
    return tokens(tmp_path / "pairs.jsonl", PAIRS)


def tokens(file, pairs, **settings):
    given = {"max_prompt_length": 999, "max_response_length": 999} | settings
    return list(encode(read_preferences([lines(file, pairs)]).rows, build_tokenizer(), **given).rows)


def key_of(folder, cache, **more):
    weights = model_fingerprint(str(folder), "--model", cache / "hashes.json")
    return {"weights": weights, "temperature": 1.0, "model": {"override_config": {}}} | more


def fill(folder, cache, rows, value=None, **more):
    """A cache of the model's log-probs, or of a number for each token."""
    model = build_model(build_tokenizer(), 0).eval()
    made = ReferenceCache(cache, key_of(folder, cache, **more))
    temperature = made and more.get("temperature", 1.0)
    values = [
        one_at_a_time(model, row, temperature) if value is None else [value] * row.response_length for row in rows
    ]
    made.add(rows, [torch.tensor(row) for row in values])
    return made


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(reference_ranking, "load_causal_lm", refuse)


@pytest.fixture(autouse=True)
def no_default_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(reference_ranking, "DEFAULT_FOLDER", tmp_path / "default")


def leads(folder, rows):
    """log pi(D+) - log pi(D-) of each pair, and by the mean over tokens, one row at a time."""
    model = build_model(build_tokenizer(), 0).eval()
    found = []
    for plus, minus in zip(*[iter(rows)] * 2, strict=True):
        one, other = one_at_a_time(model, plus), one_at_a_time(model, minus)
        found.append((sum(one) - sum(other), sum(one) / len(one) - sum(other) / len(other)))
    return found


def test_the_model_ranks_every_pair_where_there_are_fewer_than_asked_for(folder, rows):
    told = []
    found = rank_by_reference(rows, WIDE, Asked(folder, 100), on_progress=lambda *given: told.append(given))
    order = random.Random(0).sample(range(9), 9)
    expected = leads(folder, rows)
    assert found.of == 9 and found.lines == ["9 pairs computed in float32 on the CPU"]
    assert found.found.lead.tolist() == pytest.approx([expected[place][0] for place in order], abs=1e-4)
    assert found.found.lead_per_token.tolist() == pytest.approx([expected[place][1] for place in order], abs=1e-4)
    assert told[0] == (0, 18) and told[-1] == (18, 18)


def test_the_pairs_follow_from_the_seed(folder, rows):
    expected = leads(folder, rows)
    for seed in (0, 1):
        found = rank_by_reference(rows, WIDE, Asked(folder, 4, seed))
        chosen = random.Random(seed).sample(range(9), 9)[:4]
        assert found.found.lead.tolist() == pytest.approx([expected[place][0] for place in chosen], abs=1e-4)
        assert found.of == 9 and found.lines == ["4 pairs computed in float32 on the CPU"]


@pytest.mark.parametrize("named", [True, False])
def test_a_cache_with_as_many_pairs_spares_the_model(folder, rows, tmp_path, monkeypatch, no_model, named):
    cache = tmp_path / "cache"
    made = fill(folder, cache, rows[4:])
    if not named:
        monkeypatch.setattr(reference_ranking, "DEFAULT_FOLDER", cache)
    found = rank_by_reference(rows, WIDE, Asked(folder, 5, cache_dir=str(cache) if named else None))
    expected = leads(folder, rows)[2:]
    assert sorted(found.found.lead.tolist()) == pytest.approx(sorted(lead for lead, _ in expected), abs=1e-4)
    assert found.of == 9 and found.lines == [f"cache {made.folder} has 7 pairs"]


def test_of_a_cache_no_more_pairs_are_taken_than_an_interval_needs(folder, rows, tmp_path, monkeypatch, no_model):
    fill(folder, tmp_path, rows)
    monkeypatch.setattr(reference_ranking, "MOST_CACHED", 6)
    found = rank_by_reference(rows, WIDE, Asked(folder, 5, seed=2, cache_dir=str(tmp_path)))
    expected, order = leads(folder, rows), random.Random(2).sample(range(9), 9)
    assert found.found.lead.tolist() == pytest.approx([expected[place][0] for place in order[:6]], abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_a_cache_lacks_is_computed_as_the_cache_was(folder, rows, tmp_path, temperature):
    """Of the half-cached pair both rows are computed, so that a pair is of one precision."""
    whole = fill(folder, tmp_path / "whole", rows, temperature=temperature)
    cache = fill(folder, tmp_path / "part", rows[:7], temperature=temperature)
    every = rank_by_reference(rows, WIDE, Asked(folder, 9, cache_dir=str(tmp_path / "whole")))
    some = rank_by_reference(rows, WIDE, Asked(folder, 9, cache_dir=str(tmp_path / "part")))
    at = "" if temperature == 1 else ", at its run's temperature 0.6"
    assert every.lines == [f"cache {whole.folder} has 9 pairs{at}"]
    assert some.lines == [
        f"cache {cache.folder} has 3 pairs{at}",
        "6 pairs computed in float32 on the CPU, 3 from the cache",
    ]
    torch.testing.assert_close(some.found.lead, every.found.lead, atol=1e-4, rtol=0)
    torch.testing.assert_close(some.found.lead_per_token, every.found.lead_per_token, atol=1e-4, rtol=0)
    # The sample is of all pairs, cached or not: those of the cache alone may be of one file.
    few = rank_by_reference(rows, WIDE, Asked(folder, 4, cache_dir=str(tmp_path / "part")))
    torch.testing.assert_close(few.found.lead, every.found.lead[:4], atol=1e-4, rtol=0)


def test_the_cache_with_most_pairs_is_taken_and_of_equal_ones_that_at_temperature_1(folder, rows, tmp_path, no_model):
    fill(folder, tmp_path, rows[:6], -1.0, engine="another")
    second = fill(folder, tmp_path, rows[:8], -2.0, temperature=0.5)
    found = rank_by_reference(rows, WIDE, Asked(folder, 2, cache_dir=str(tmp_path)))
    assert found.lines == [f"cache {second.folder} has 4 pairs, at its run's temperature 0.5"]
    third = fill(folder, tmp_path, rows[:8], -3.0)
    fill(folder, tmp_path, rows[:8], -4.0, temperature=0.4)
    found = rank_by_reference(rows, WIDE, Asked(folder, 2, cache_dir=str(tmp_path)))
    assert found.lines == [f"cache {third.folder} has 4 pairs"]
    lengths = [row.response_length for row in rows[:8]]
    assert sorted(found.found.lead.tolist()) == sorted(-3.0 * (lengths[i] - lengths[i + 1]) for i in range(0, 8, 2))
    assert found.found.lead_per_token.tolist() == [0.0] * 4


def test_caches_of_other_models_templates_and_lengths_are_told_and_not_used(folder, rows, tmp_path):
    computed = rank_by_reference(rows, WIDE, Asked(folder, 3))
    other = tmp_path / "other"
    fill(folder, other, rows, -1.0, weights="another's")
    fill(folder, other, rows, -1.0, model={"override_config": {"rope_theta": 5}})
    found = rank_by_reference(rows, WIDE, Asked(folder, 3, cache_dir=str(other)))
    said = f"cache {other}: its log-probs (2 caches) are of other models; none is used"
    assert found.lines == [said, *computed.lines] and torch.equal(found.found.lead, computed.found.lead)
    template = tmp_path / "template"
    changed = [TokenRow([9, *r.prompt_ids], r.response_ids, r.desirable, r.pair, r.source) for r in rows]
    fill(folder, template, changed, -1.0)
    found = rank_by_reference(rows, WIDE, Asked(folder, 3, cache_dir=str(template)))
    why = "other data, another chat template or other lengths"
    assert found.lines == [f"cache {template}: of this model, but without these pairs' tokens ({why})", *computed.lines]
    assert torch.equal(found.found.lead, computed.found.lead)
    found = rank_by_reference(rows, WIDE, Asked(folder, 3, cache_dir=str(tmp_path / "none")))
    assert found.lines == [f"--cache-dir {tmp_path / 'none'} holds no cache of reference log-probs", *computed.lines]


def test_what_a_cache_has_lost_is_told(folder, rows, tmp_path):
    made = fill(folder, tmp_path, rows, -1.0)
    (file,) = made.folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    found = rank_by_reference(rows, WIDE, Asked(folder, 2, cache_dir=str(tmp_path)))
    assert found.lines[0] == f"{file} was damaged and is removed" and found.lines[-1].startswith("2 pairs computed")


@pytest.mark.parametrize(
    "more, same",
    [
        ({}, True),
        ({"temperature": 0.1, "engine": {"strategy": "megatron"}}, True),
        ({"model": {"override_config": {"attn_implementation": "cpu_packed"}}}, True),
        ({"model": {"override_config": None}}, True),
        ({"model": {}}, True),
        ({"weights": "others"}, False),
        ({"model": {"override_config": {"attn_implementation": "eager", "rope_theta": 1}}}, False),
        ({"configuration": "x"}, False),
        ({"modules": {"own": "x"}}, False),
    ],
)
def test_a_cache_is_the_folders_if_nothing_but_its_files_made_the_model(more, same):
    assert is_of_folder({"weights": "mine", "model": {"override_config": {}}} | more, "mine") == same
    assert not is_of_folder({}, "mine")


def test_without_pairs_or_weights_it_is_skipped_with_the_reason(folder, rows, tmp_path, no_model):
    alone = [TokenRow(r.prompt_ids, r.response_ids, r.desirable, None, r.source) for r in rows]
    found = rank_by_reference(alone, WIDE, Asked(folder, 3))
    assert (found.found, found.of, found.lines) == (None, 0, ["skipped: there are no pairs of a D+ and a D- row"])
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    found = rank_by_reference(rows, WIDE, Asked(tmp_path / "tokenizer", 3))
    assert found.found is None and found.of == 9
    assert found.lines == [
        f"skipped: {tmp_path / 'tokenizer'} holds a tokenizer and no weights (*.safetensors, *.bin, *.pt, *.pth); "
        "name the model's own folder"
    ]
    short = RowSettings(1, 999, {})
    found = rank_by_reference(rows, short, Asked(folder, 3))
    assert found.found is None
    assert found.lines == ["9 pairs are left out: too long for the run", "skipped: no pair fits into the run's lengths"]


def test_a_model_that_does_not_fit_is_not_loaded(folder, rows, tmp_path, monkeypatch, no_model):
    (file,) = folder.glob("*.safetensors")
    need = 4 * sum(value.numel() for value in load_file(file).values()) + 2**30
    memory = SimpleNamespace(available=need - 1)
    monkeypatch.setattr(reference_ranking.psutil, "virtual_memory", lambda: memory)
    found = rank_by_reference(rows, WIDE, Asked(folder, 3))
    sentence = "the model takes about 1.0 GiB in float32, and 1.0 GiB are free; use a larger machine, or a run's cache"
    assert found.found is None and found.lines == [f"skipped: {sentence} with --cache-dir"]
    # What a cache has is shown all the same.
    made = fill(folder, tmp_path, rows[:4])
    found = rank_by_reference(rows, WIDE, Asked(folder, 3, cache_dir=str(tmp_path)))
    lines = [f"cache {made.folder} has 2 pairs", f"those of the cache alone: {sentence} with --cache-dir"]
    assert found.lines == lines and len(found.found.lead) == 2
    memory.available = need
    with pytest.raises(AssertionError, match="the model was loaded"):
        rank_by_reference(rows, WIDE, Asked(folder, 3))


def test_on_a_gpu_it_computes_in_bfloat16_if_both_memories_hold_the_model(folder, rows, monkeypatch):
    """Of stand-ins: where a run's reference computes so by default."""
    asked = []

    class Model:
        config = build_model(build_tokenizer(), 0).config

        def to(self, device):
            asked.append(device)
            return self

    def load(model, dtype, setting, *, local):
        asked.append(dtype)
        return Model()

    (file,) = folder.glob("*.safetensors")
    need = 2 * sum(value.numel() for value in load_file(file).values()) + 2**30
    memory, gpu = SimpleNamespace(available=need), [need]
    monkeypatch.setattr(reference_ranking.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (gpu[0], 2 * gpu[0]))
    monkeypatch.setattr(reference_ranking, "load_causal_lm", load)
    monkeypatch.setattr(
        reference_ranking,
        "response_log_probs",
        lambda model, rows, **more: [torch.zeros(r.response_length) for r in rows],
    )
    found = rank_by_reference(rows, WIDE, Asked(folder, 3))
    assert asked == [torch.bfloat16, "cuda"] and found.lines == ["3 pairs computed in bfloat16 on the GPU"]
    for memory.available, gpu[0] in ((need - 1, need), (need, need - 1)):
        (line,) = rank_by_reference(rows, WIDE, Asked(folder, 3)).lines
        assert line.startswith("skipped: the model takes about 1.0 GiB in bfloat16")


def test_a_damaged_model_and_too_little_memory_for_a_pass_are_said(folder, rows, tmp_path, monkeypatch):
    weights = load_file(folder / "model.safetensors")
    lacking = save_model(build_model(build_tokenizer(), 0), build_tokenizer(), tmp_path / "model")
    del weights["model.norm.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    (line,) = rank_by_reference(rows, WIDE, Asked(lacking, 3)).lines
    assert line == f"skipped: --model={lacking}: its files lack model.norm.weight and 0 more; name a whole one."

    def too_large(*given, **more):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(reference_ranking, "response_log_probs", too_large)
    (line,) = rank_by_reference(rows, WIDE, Asked(folder, 3)).lines
    assert line == "skipped: the CPU has too little memory for a pass; use a larger one"


LONG = [
    {"prompt": "p" * 20, "chosen": "a" * 9 + "x", "rejected": "a" * 9 + "y"},  # the same once cut to 6 tokens
    {"prompt": "q", "chosen": "b" * 30, "rejected": "c"},
    {"prompt": "r" * 30, "chosen": "d", "rejected": "e"},
    {"prompt": "s", "chosen": "f" * 5, "rejected": "g" * 4},  # with its end as long as may be
    {"prompt": "s", "chosen": "f" * 6, "rejected": "g" * 4},
    {"prompt": "t" * 7, "chosen": "f", "rejected": "g"},  # behind the token that opens it as long as may be
    {"prompt": "t" * 8, "chosen": "f", "rejected": "g"},
]


@pytest.mark.parametrize("how", ["drop", "truncate", "error"])
def test_pairs_are_those_that_a_run_has_at_its_lengths(tmp_path, how):
    whole = tokens(tmp_path / "a.jsonl", LONG)
    limits = {"max_prompt_length": 8, "max_response_length": 6}
    run = tokens(tmp_path / "b.jsonl", LONG, **limits, on_too_long="drop" if how == "error" else how)
    expected = [(run[i].digest, run[j].digest) for i, j in pairs_of(run).tolist()]
    given = [(whole[i], whole[j]) for i, j in pairs_of(whole).tolist()]
    found = fitting(given, RowSettings(8, 6, {}), how)
    assert [(one.digest, other.digest) for one, other in found] == expected
    assert len(expected) == (6 if how == "truncate" else 2)


def test_an_unknown_word_is_refused(folder):
    with pytest.raises(ValueError, match="--on-too-long='cut' must be one of error, drop, truncate"):
        Asked(folder, 1, on_too_long="cut")


@pytest.fixture(scope="module")
def reference_worker(tmp_path_factory):
    """What verl's reference worker (FSDP2, float32) gives of the pairs' rows, in micro-batches, and their model."""
    from tensordict import TensorDict

    from fgrpo_plugin.config import FDivergenceConfig
    from fgrpo_plugin.host.driver.joining import as_queue_rows, preference_numbers
    from tests.support.engine_jobs import dump, job, run_jobs
    from tests.support.worker import make_model

    place = tmp_path_factory.mktemp("worker")
    torch.manual_seed(0)
    make_model(str(place / "model"), layers=2, hidden=32)
    # As many rows as such a job wants, of prompts and responses of many lengths.
    rows = tokens(place / "pairs.jsonl", PAIRS[:6])
    fields = as_queue_rows(rows, [-torch.ones(row.response_length) for row in rows])
    dump(place, rows=TensorDict(fields | preference_numbers(rows, FDivergenceConfig(), 1.0), batch_size=len(rows)))
    asked = job(place, "passes", "rows", "f_hal", micro=4, log_probs=["reference worker"])
    (found,) = run_jobs([asked], place)["passes"]
    values = [
        whole[-row.response_length :] for whole, row in zip(found["log_probs, reference worker"], rows, strict=True)
    ]
    return SimpleNamespace(model=place / "model", rows=rows, values=values)


def test_the_models_log_probs_are_those_of_verls_reference_worker(reference_worker, tmp_path):
    from fgrpo_plugin.model_loading import load_causal_lm
    from fgrpo_plugin.preference.model_log_probs import response_log_probs

    model = load_causal_lm(str(reference_worker.model), torch.float32, "--model")
    ours = response_log_probs(model, reference_worker.rows)
    for one, other in zip(ours, reference_worker.values, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    # And so both ways to the accuracy give the same.
    cache = ReferenceCache(tmp_path, key_of(reference_worker.model, tmp_path))
    cache.add(reference_worker.rows, reference_worker.values)
    cached = rank_by_reference(reference_worker.rows, WIDE, Asked(reference_worker.model, 6, cache_dir=str(tmp_path)))
    computed = rank_by_reference(reference_worker.rows, WIDE, Asked(reference_worker.model, 6))
    assert cached.lines == [f"cache {cache.folder} has 6 pairs"] and len(cached.found.lead) == 6
    torch.testing.assert_close(cached.found.lead, computed.found.lead, atol=1e-4, rtol=0)
    assert torch.equal(cached.found.right, computed.found.right)
