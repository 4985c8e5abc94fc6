"""Preference rows as tokens."""

import numpy as np

from fgrpo_plugin.preference.tokens import TokenRow


def rows(count=8, seed=0):
    """D+ and D- in turn, of very different lengths."""
    generator = np.random.default_rng(seed)
    return [
        TokenRow(
            [1] * int(generator.integers(1, 9)), [i + 3] * int(generator.integers(1, 90)), i % 2 == 0, f"p{i // 2}", ""
        )
        for i in range(count)
    ]
