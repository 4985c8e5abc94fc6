"""What docs/upgrading.md says of versions, scales and refusals is what the code does."""

import re
from pathlib import Path

import pytest

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import USED_SOURCES
from fgrpo_plugin.pinned import VERL, VERL_ALSO
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.token_rows import TokenRow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "upgrading.md").read_text()


def test_the_factors_are_those_of_the_scales():
    beta = 0.1
    (former,) = re.findall(r"at beta 0.1 `scale=\[1,([\d.]+)\]`", PAGE)
    assert float(former) == pytest.approx(1 / (1 + 1 / beta), abs=1e-4)
    now = FDivergenceConfig(preset="stable", beta=beta, scale="paper").scales()[1]
    multiplies, divided = re.search(
        r"multiplies the on-policy half by (\d+) where it divided it by (\d+)", PAGE
    ).groups()
    assert now == pytest.approx(float(multiplies)) and float(divided) == pytest.approx(1 + 1 / beta)
    (factor,) = re.findall(r"another experiment by a\s+factor of (\d+)", PAGE)
    assert float(factor) == pytest.approx(now * (1 + 1 / beta))
    # What stood for `released` in 0.1 has the scales of its time: 1/(beta + gamma) and 1.
    assert FDivergenceConfig(preset="stable", gamma=1.0).scales() == pytest.approx((1 / 1.1, 1))


def test_the_versions_and_the_functions_that_are_looked_at():
    assert f"verl {VERL} is what this is written for; verl {' and '.join(VERL_ALSO)} is taken too" in PAGE
    assert f"for {len(USED_SOURCES)} functions of verl" in PAGE


def test_the_note_at_a_start_is_the_one_that_is_shown():
    shown = re.search(r"fgrpo-plugin: preset=paper: (since.*?), \.\.\.\n", PAGE)[1]
    printed = re.sub(r'"\s*\n\s*f?"', "", (ROOT / "fgrpo_plugin/host/settings/switch.py").read_text())
    assert shown in printed


def test_a_sampler_refuses_what_the_table_says():
    rows = [TokenRow([1, 2], [3 + i], desirable, "pair", "file") for i, desirable in enumerate((True, False))]
    state = PreferenceSampler(rows, seed=0).state_dict()
    others = {
        "seed": PreferenceSampler(rows, seed=1),
        "keep_pairs": PreferenceSampler(rows, seed=0, keep_pairs=True),
        "data": PreferenceSampler([*rows, TokenRow([1], [9], True, None, "file")], seed=0),
    }
    refused = "(files, template, lengths, end of a response), `data.preference.seed` or `keep_pairs` | refused:"
    assert f"| preference rows {refused}" in PAGE
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"made with another data.preference\.{name} "):
            other.load_state_dict(state)
    PreferenceSampler(rows, seed=0).load_state_dict(state)
