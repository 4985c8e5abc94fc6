"""Every number that f-GRPO and f-HAL log, as metrics.yaml declares it."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf


@dataclass(frozen=True)
class LoggedMetric:
    """One logged number; the fields are described at the head of metrics.yaml."""

    name: str
    formula: str
    unit: str
    healthy: str
    source: str
    outside: str
    f_hal_only: bool = False


METRICS: tuple[LoggedMetric, ...] = tuple(
    LoggedMetric(**entry)  # type: ignore[arg-type]
    for entry in OmegaConf.load(Path(__file__).with_name("metrics.yaml"))
)
"""In the order of docs/metrics.md."""
