"""Attention over packed rows without the flash kernel."""

import pytest
import torch

from fgrpo_plugin.host.cpu.attention import packed_attention


def test_packed_attention_is_causal_attention_of_each_row():
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 5, 1]
    query, key, value = (torch.randn(1, sum(lengths), heads, 8, generator=generator) for heads in (4, 2, 2))
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    found = packed_attention(query, key, value, None, sum(lengths), position_ids=positions)
    start = 0
    for n in lengths:
        for token in range(start, start + n):
            for head in range(4):
                keys, values = (states[0, start : token + 1, head // 2] for states in (key, value))
                weights = (keys @ query[0, token, head] / 8**0.5).softmax(dim=0)
                torch.testing.assert_close(found[0, token, head], weights @ values)
        start += n
    with pytest.raises(ValueError, match="takes packed rows"):
        packed_attention(query, key, value, torch.ones(1, 9), 9, position_ids=positions)
