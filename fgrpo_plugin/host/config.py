"""Moved to `fgrpo_plugin.host.worker.loss_section`; configurations that 0.1 has written name it here until 0.3."""

from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig as FDivergencePolicyLossConfig
