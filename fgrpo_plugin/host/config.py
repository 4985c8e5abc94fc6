"""Moved to `fgrpo_plugin.host.worker.loss_section`; configurations of 0.1 and 0.2 name it here, until 0.4."""

from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig as FDivergencePolicyLossConfig
