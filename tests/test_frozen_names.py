"""Names that other people's scripts, dashboards and checkpoints hold: a change here is a change for them.

Adding one: add it to tests/frozen_names.yaml. Taking one away or renaming it: only with a new minor version, a line in
CHANGELOG.md and one in docs/upgrading.md.
"""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fgrpo_plugin import advantages, divergences, losses, theory
from fgrpo_plugin.config import PRESETS, FDivergenceConfig
from fgrpo_plugin.host.contract import ENGINE_FIELDS, ESTIMATORS, PREFERENCE_FIELDS, ROW_FIELDS
from fgrpo_plugin.host.metric_table import METRICS
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.readers import FORMATS

FROZEN = yaml.safe_load((Path(__file__).parent / "frozen_names.yaml").read_text())
NOW = {
    "estimators": ESTIMATORS,
    "presets": PRESETS,
    "divergences": divergences.available_divergences(),
    "settings of the loss": [field.name for field in fields(FDivergenceConfig)],
    "settings of preference data": [field.name for field in fields(PreferenceConfig)],
    "formats of preference data": [format.name for format in FORMATS],
    "metrics": [metric.name for metric in METRICS],
    "fields of a row": (*ROW_FIELDS, *PREFERENCE_FIELDS, *ENGINE_FIELDS),
    "functions": [
        f"{module.__name__}.{name}" for module in (advantages, divergences, losses, theory) for name in module.__all__
    ],
}


@pytest.mark.parametrize("kind", NOW)
def test_they_are_the_frozen_ones(kind):
    assert sorted(NOW[kind]) == FROZEN[kind]


def test_nothing_else_is_frozen():
    assert FROZEN.keys() == NOW.keys()
