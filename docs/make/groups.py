"""Write the config groups f_grpo and f_hal from the settings' fields and defaults:  python docs/make/groups.py"""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from fgrpo_plugin.config import DEFAULT_LAM, FDivergenceConfig
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.typed_settings import settings_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "fgrpo_plugin" / "conf" / "fgrpo"
FILLED_IN = {"old_log_prob"}  # by the validation, never set
OF_BOTH_HALVES = {"lam": DEFAULT_LAM, "preference_gamma": 0.0}
"""Settings of the loss that only f-HAL reads, and their values in its group."""

F_GRPO = """\
# @package _global_
# f-GRPO: every setting of the loss at its default. Recipes include it; beside another group: +fgrpo=[cpu,f_grpo].
# Written by `make docs` from fgrpo_plugin/config.py.
algorithm:
  adv_estimator: f_grpo

actor_rollout_ref:
  actor:
    policy_loss:
      f_divergence:
{loss}
"""
F_HAL = """\
# @package _global_
# f-HAL beside a group of f-GRPO: +fgrpo=[math_7b,f_hal], +fgrpo=[f_grpo,f_hal]. Every setting of the preference data.
# Written by `make docs` from fgrpo_plugin/preference/config.py and fgrpo_plugin/config.py.
algorithm:
  adv_estimator: f_hal

data:
  preference:
{preference}

actor_rollout_ref:
  actor:
    policy_loss:
      f_divergence:
{loss}
"""


def lines(cls: type, indent: int, values: dict[str, Any] | None = None, without: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """A comment and a line of YAML for each setting."""
    found = []
    for name, default, must, meaning in settings_of(cls):
        if name in without or (values is not None and name not in values):
            continue
        about = f"{meaning} ({must})".replace("``", "").replace("`", "")
        found += textwrap.wrap(about, 116 - indent, initial_indent="# ", subsequent_indent="# ")
        value = default if values is None else values[name]
        found.append(f"{name}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    return textwrap.indent("\n".join(found), " " * indent)


def groups() -> dict[str, str]:
    """File name -> content."""
    only_f_hal = FILLED_IN | OF_BOTH_HALVES.keys()
    return {
        "f_grpo.yaml": F_GRPO.format(loss=lines(FDivergenceConfig, 8, without=only_f_hal)),
        "f_hal.yaml": F_HAL.format(
            preference=lines(PreferenceConfig, 4), loss=lines(FDivergenceConfig, 8, OF_BOTH_HALVES)
        ),
    }


def main() -> None:
    for name, content in groups().items():
        (FOLDER / name).write_text(content)


if __name__ == "__main__":
    main()
