"""``fgrpo settings``: every setting with its default and range, and what becomes of verl's."""

from dataclasses import fields

from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.settings.refusals import ACTOR_SETTINGS
from fgrpo_plugin.preference.config import PreferenceConfig


def test_every_setting_is_printed_on_request(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    printed = CliRunner().invoke(app, ["settings"]).output
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) > 1}
    for cls in (FDivergenceConfig, PreferenceConfig):
        assert {field.name for field in fields(cls)} - {"old_log_prob"} <= rows.keys()
    assert rows["beta"][:2] == ["0.1", "a number > 0"] and rows["weight_temperature"][0] == "1.0"
    assert rows["lam"][0] == "0.0; 0.5 for f_hal"
    assert rows["scale"][1] == "one of unit, paper, or two numbers > 0, [s_all, s_on], or null"
    for name, meaning in ACTOR_SETTINGS.items():
        assert rows[name] == [meaning]
