"""Attention of each row by itself, without the flash kernel: against the definition, and in models against `sdpa`."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fgrpo_plugin.host.cpu.attention import NAME, row_attention

LENGTHS = {"uneven": [3, 5, 1, 9], "of one token": [1, 1, 1], "one row": [7], "even": [4, 4]}


def states(tokens: int, batch: int = 1, heads: tuple[int, int, int] = (4, 2, 2)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, tokens, n, 8, generator=generator, requires_grad=True) for n in heads]


def by_definition(query, key, value, lengths: list[int], window: int | None = None) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v, a token and a head at a time."""
    rows, start, group = [], 0, query.shape[2] // key.shape[2]
    for n in lengths:
        for token in range(start, start + n):
            first = start if window is None else max(start, token - window + 1)
            heads = []
            for head in range(query.shape[2]):
                keys, values = (part[0, first : token + 1, head // group] for part in (key, value))
                heads.append((keys @ query[0, token, head] / 8**0.5).softmax(dim=0) @ values)
            rows.append(torch.stack(heads))
        start += n
    return torch.stack(rows).unsqueeze(0)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("heads", [(4, 4, 4), (4, 2, 2), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("window", [None, 2, 4])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_rows_attend_each_to_itself(lengths, window, heads):
    inputs = states(sum(lengths), heads=heads)
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    found = row_attention(*inputs, None, sum(lengths), position_ids=positions, sliding_window=window)
    expected = by_definition(*inputs, lengths, window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_padded_rows_attend_to_their_own_tokens():
    lengths, inputs = [3, 6, 1], states(6, batch=3)
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    found = row_attention(*inputs, mask, 6, position_ids=torch.arange(6).expand(3, 6))
    for row, n in enumerate(lengths):
        expected = by_definition(*(part[row : row + 1, :n] for part in inputs), [n])
        torch.testing.assert_close(found[row : row + 1, :n], expected, rtol=1e-5, atol=1e-6)
    # Rows of one length have no mask, and their places tell nothing.
    whole = row_attention(*inputs, None, 6, position_ids=torch.arange(6).expand(3, 6))
    torch.testing.assert_close(whole[2:], by_definition(*(part[2:] for part in inputs), [6]), rtol=1e-5, atol=1e-6)


def test_the_scale_is_the_models():
    inputs = states(5)
    query, key, value = (part.transpose(1, 2) for part in inputs)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    found = row_attention(*inputs, None, 5, position_ids=torch.arange(5).unsqueeze(0), softmax_scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_dropped_weights_are_dropped():
    query, key, value = states(4)
    found = row_attention(query, key, value, None, 4, position_ids=torch.arange(4).unsqueeze(0), dropout=1.0)
    assert not found.any()


def test_rows_padded_at_their_beginning_and_keys_of_a_cache_are_refused():
    query, key, value = states(3, batch=2)
    left = torch.tensor([[True, True, True], [False, True, True]])
    for refused in ((query, key, value, left), (query[:, -1:], key, value, None)):
        with pytest.raises(ValueError, match="takes whole rows, packed or padded at their end"):
            row_attention(*refused, 3)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """As a worker has it: importing verl's module registers the attention."""
    import os

    os.environ.setdefault("VERL_PLATFORM", "cpu")
    import verl.models.transformers.monkey_patch as module

    from fgrpo_plugin.host.cpu.attention import register

    kernel = module._flash_attention_forward
    register(module)
    yield module
    module._flash_attention_forward = kernel


MODELS = {
    "Llama, grouped heads": ("Llama", {}),
    "Qwen2, a sliding window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "Mistral, a sliding window": ("Mistral", {"sliding_window": 4}),
}


@pytest.mark.parametrize(("family", "settings"), MODELS.values(), ids=MODELS)
def test_packed_and_padded_rows_of_a_model_are_those_of_padded_sdpa(family, settings):
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(vocab_size=50, num_key_value_heads=2, **shape, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    lengths = [1, 7, 4, 11]
    mask = torch.arange(11) < torch.tensor(lengths).unsqueeze(1)
    ids, positions = torch.randint(0, 50, mask.shape), torch.arange(11).expand(mask.shape)
    weights = torch.randn(sum(lengths), 50)

    def run(**inputs):
        logits = model(use_cache=False, **inputs).logits
        logits = logits[mask] if logits.shape[0] > 1 else logits[0]
        model.zero_grad()
        (logits * weights).sum().backward()
        return logits, {name: value.grad.clone() for name, value in model.named_parameters()}

    expected, slopes = run(input_ids=ids, attention_mask=mask.long(), position_ids=positions)
    model.set_attn_implementation(NAME)
    for inputs in (
        {"input_ids": ids[mask].unsqueeze(0), "attention_mask": None, "position_ids": positions[mask].unsqueeze(0)},
        {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions},
    ):
        found, of_weights = run(**inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        largest = max(value.abs().max() for value in slopes.values())
        for name, value in of_weights.items():
            assert (value - slopes[name]).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("feature", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}], ids=str)
def test_what_it_does_not_compute_is_refused(feature):
    from transformers import AttentionInterface

    attention = AttentionInterface()[NAME]
    with pytest.raises(ValueError, match="knows neither capped logits nor attention sinks"):
        attention(None, *(part.transpose(1, 2) for part in states(3)), None, **feature)
