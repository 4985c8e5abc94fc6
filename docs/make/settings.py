"""Put the tables of settings into the pages that show them, from the settings' fields:  python docs/make/settings.py

A page has the table of a name between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgrpo_plugin.config import DEFAULT_LAM, PRESETS, FDivergenceConfig
from fgrpo_plugin.divergences import available_divergences
from fgrpo_plugin.host.settings.listing import FILLED_IN
from fgrpo_plugin.host.settings.refusals import ACTOR_SETTINGS
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.typed_settings import settings_of

ROOT = Path(__file__).parents[2]
PAGES = ("docs/settings.md", "docs/f_hal.md")


def of_the_loss() -> str:
    """Every setting of `policy_loss.f_divergence`."""
    return _table(["key", "default", "meaning"], _loss_rows())


def of_both_halves() -> str:
    """Those that f-HAL alone reads."""
    return _table(
        ["key", "default", "meaning"], [row for row in _loss_rows() if row[0] in ("`lam`", "`preference_gamma`")]
    )


def of_the_preferences() -> str:
    """Every setting of `data.preference`."""
    rows = [
        [f"`{name}`", _shown(default), _text(meaning)] for name, default, _, meaning in settings_of(PreferenceConfig)
    ]
    return _table(["key", "default", "meaning"], rows)


def of_the_actor() -> str:
    """What becomes of verl's own."""
    rows = [
        [", ".join(f"`{name}`" for name in names.split(", ")), meaning] for names, meaning in ACTOR_SETTINGS.items()
    ]
    return _table(["setting of verl", "under f-GRPO and f-HAL"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": of_the_loss,
    "both halves": of_both_halves,
    "preference": of_the_preferences,
    "actor": of_the_actor,
}
BLOCK = re.compile(rf"(<!-- ({'|'.join(TABLES)}) -->\n).*?(<!-- /\2 -->)", flags=re.DOTALL)


def _loss_rows() -> list[list[str]]:
    rows = []
    for name, default, _, meaning in settings_of(FDivergenceConfig):
        shown, more = _shown(default), ""
        if name in PRESETS["stable"]:
            shown, more = "by preset", f": {_by_preset(name)}"
        elif name == "lam":
            shown = f"{_shown(DEFAULT_LAM)} for `f_hal`"
        elif name == "divergence":
            more = f". Built in: {', '.join(f'`{name}`' for name in available_divergences())}"
        if name != FILLED_IN:
            rows.append([f"`{name}`", shown, _text(meaning.rstrip(".") + more)])
    return rows


def _by_preset(name: str) -> str:
    """What each preset makes of a setting: 0.0 (`stable`, `paper`), 1.0 (`released`)."""
    given: dict[Any, list[str]] = {}
    for preset, values in PRESETS.items():
        given.setdefault(values[name], []).append(f"`{preset}`")
    return ", ".join(f"{_shown(value)} ({', '.join(presets)})" for value, presets in given.items())


def _shown(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def _text(meaning: str) -> str:
    return meaning.replace("``", "`").replace("|", "\\|").rstrip(".")


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def filled(text: str) -> str:
    """The page with the tables as the fields have them."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
