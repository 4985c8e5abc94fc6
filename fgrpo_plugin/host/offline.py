"""Moved to `fgrpo_plugin.host.driver.offline`; configurations of 0.1 and 0.2 name it here, until 0.4."""

from fgrpo_plugin.host.driver.offline import NoPrompts as NoPrompts
from fgrpo_plugin.host.driver.offline import NoRollouts as NoRollouts
