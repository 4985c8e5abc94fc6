"""Log-probs of responses by a model: against one row at a time, and against verl's own reference worker."""

import inspect

import pytest
import torch

from fgrpo_plugin.preference.model_log_probs import batches, response_log_probs
from fgrpo_plugin.preference.tokens import TokenRow
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer


@pytest.fixture(scope="module")
def model():
    return build_model(build_tokenizer(), 3).eval()


def rows(count=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 12, (count, 2), generator=draw).tolist()
    ids = [[torch.randint(3, 200, (n,), generator=draw).tolist() for n in pair] for pair in sizes]
    ids[0][0], ids[3][1] = [7], [9]  # a prompt and a response of one token
    return [TokenRow(*pair, i % 2 == 0, f"p{i // 2}", "") for i, pair in enumerate(ids)]


def one_at_a_time(model, row, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt_ids + row.response_ids])).logits[0] / temperature
    return [
        float(logits[row.prompt_length + t - 1].softmax(-1)[token].log()) for t, token in enumerate(row.response_ids)
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("at_once", [1, 30 * 264, 2**26])
def test_they_are_those_of_each_row_by_itself(model, at_once, temperature):
    found = response_log_probs(model, rows(), temperature=temperature, logits_at_once=at_once)
    assert len(found) == 9
    for row, values in zip(rows(), found, strict=True):
        assert values.dtype == torch.float32 and not values.requires_grad
        assert values.tolist() == pytest.approx(one_at_a_time(model, row, temperature), abs=1e-5)


def test_the_temperature_is_1_where_none_is_given(model):
    for row, values in zip(rows(), response_log_probs(model, rows()), strict=True):
        assert values.tolist() == pytest.approx(one_at_a_time(model, row), abs=1e-5)


def test_a_model_that_makes_every_logit_gives_the_same(model):
    class Plain:
        config, device = model.config, model.device

        def __call__(self, **given):
            assert "logits_to_keep" not in given
            return model(**given)

        def forward(self, input_ids, attention_mask):
            raise AssertionError("its signature alone is read")

    assert "logits_to_keep" in inspect.signature(model.forward).parameters
    for one, other in zip(response_log_probs(Plain(), rows()), response_log_probs(model, rows()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_only_the_logits_of_responses_are_made(model, monkeypatch):
    kept, forward = [], type(model).forward

    def recording(self, input_ids, logits_to_keep=0, **given):
        kept.append((input_ids.shape, logits_to_keep, given["attention_mask"].sum(-1).tolist(), given["use_cache"]))
        return forward(self, input_ids, logits_to_keep=logits_to_keep, **given)

    monkeypatch.setattr(type(model), "forward", recording)
    response_log_probs(
        model, [TokenRow([1] * 20, [2] * 3, True, None, ""), TokenRow([1] * 18, [2] * 6, True, None, "")]
    )
    # The last of 18 tokens of a prompt is the first whose logits count: 7 of 24.
    assert kept == [((2, 24), 7, [24, 23], False)]


def test_passes_hold_each_row_once_and_no_more_than_they_may():
    lengths = [3, 50, 7, 7, 1, 20, 6, 50]
    found = list(batches(lengths, 60))
    assert sorted(place for places in found for place in places) == list(range(8))
    for places in found:
        padded = len(places) * max(lengths[place] for place in places)
        assert padded <= 60 or len(places) == 1
    # The longest first, so that too little memory shows at once; a pass is left only when the next row does not fit.
    assert found == [[1], [7], [5, 2, 3], [6, 0, 4]]
    assert list(batches([5, 5], 10)) == [[0, 1]] and list(batches([5, 5], 9)) == [[0], [1]]
    assert list(batches([100], 10)) == [[0]] and list(batches([], 10)) == []


def test_progress_is_told_from_none_to_all(model):
    told = []
    response_log_probs(model, rows(5), logits_at_once=1, on_progress=lambda *given: told.append(given))
    assert told == [(done, 5) for done in range(6)]
    response_log_probs(model, [], on_progress=lambda *given: told.append(given))
    assert told[-1] == (0, 0)
