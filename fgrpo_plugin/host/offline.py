"""Moved to `fgrpo_plugin.host.driver.offline`; configurations that 0.1 has completed name it here until 0.3."""

from fgrpo_plugin.host.driver.offline import NoPrompts as NoPrompts
from fgrpo_plugin.host.driver.offline import NoRollouts as NoRollouts
