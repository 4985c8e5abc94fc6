"""Make docs/metrics.md from `fgrpo_plugin/host/metrics.yaml`:  python docs/make/metrics.py"""

from pathlib import Path

from fgrpo_plugin.host.metric_table import METRICS, LoggedMetric

DOCS = Path(__file__).parents[1]

PAGE = """# What a run logs

Made by `python docs/make/metrics.py` from `fgrpo_plugin/host/metrics.yaml`. verl's own metrics are not repeated here. Workers report sums
and counts of each micro-batch, which the driver divides once, so that within a mini-batch no number depends on micro-batches or ranks;
`tests/host/test_metrics.py` has each definition as a loop over raw responses. A number that cannot be had (a mean over
no responses) is left out of that step.

With several mini-batches in a step each of them has its own denominators; what is logged is the ratio of the step's totals where they
have equally many micro-batches. r is the implicit reward after clipping, beta nats means that r is in units of
beta times nats, f's unit that of the divergence. Log-probs are natural. "aligned" in a name is the side of positive advantages,
"unaligned" that of negative ones; D+ rows are desirable, D- rows undesirable preference rows. D+ rows are the desirable preference rows, D- rows the undesirable ones.

## f-GRPO and f-HAL

{both}

## f-HAL alone

{f_hal}
"""


def _table(metrics: list[LoggedMetric]) -> str:
    rows = [[f"`{m.name}`", m.formula, m.unit, m.healthy, m.source, m.outside] for m in metrics]
    head = ["metric", "formula", "unit", "healthy", "source of that", "otherwise, or what it is for"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def page() -> str:
    """The text of docs/metrics.md."""
    return PAGE.format(
        both=_table([metric for metric in METRICS if not metric.f_hal_only]),
        f_hal=_table([metric for metric in METRICS if metric.f_hal_only]),
    )


def draw(folder: Path) -> None:
    """The page has no picture."""


if __name__ == "__main__":
    (DOCS / "metrics.md").write_text(page())
