"""What ``fgrpo settings`` prints."""

import json

from rich.table import Table

from fgrpo_plugin.config import DEFAULT_LAM, FDivergenceConfig
from fgrpo_plugin.host.contract import LOSS
from fgrpo_plugin.host.settings.refusals import ACTOR_SETTINGS
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.terminal import Terminal
from fgrpo_plugin.typed_settings import settings_of

SECTIONS = {f"{LOSS}.f_divergence": FDivergenceConfig, "data.preference": PreferenceConfig}
FILLED_IN = "old_log_prob"


def print_settings() -> None:
    """Each section's settings with defaults, ranges and meanings, and what f-GRPO does with those of verl's actor."""
    console = Terminal()
    for section, cls in SECTIONS.items():
        table = Table("setting", "default", "must be", "meaning", title=f"++{section}.<setting>", title_justify="left")
        for name, default, must, meaning in settings_of(cls):
            if name != FILLED_IN:
                shown = default if isinstance(default, str) else json.dumps(default)
                shown += f"; {DEFAULT_LAM} for f_hal" if name == "lam" else ""
                table.add_row(name, shown, must, meaning.replace("`", ""))
        console.print(table)
    table = Table("setting of verl", "under f-GRPO and f-HAL", title="actor_rollout_ref.actor", title_justify="left")
    for name, meaning in ACTOR_SETTINGS.items():
        table.add_row(name, meaning)
    console.print(table)
