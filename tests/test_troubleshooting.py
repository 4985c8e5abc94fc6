"""What docs/troubleshooting.md says is printed or logged: found in the code that prints it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
STRING_JOIN = re.compile(r'"\s*\n\s*f?"')
PLACE = re.compile(r"\{[^{}]*\}")
VERLS = {
    "Unknown advantage estimator simply:": "verl/trainer/ppo/core_algos.py",
    "is less than total desired GPUs": "verl/single_controller/ray/base.py",
    "Total available GPUs": "verl/single_controller/ray/base.py",
    "grad_norm is not finite:": "verl/workers/engine/fsdp/transformer_impl.py",
    "response_length/mean": "verl/trainer/ppo/metric_utils.py",
    "response_length/clip_ratio": "verl/trainer/ppo/metric_utils.py",
    "val-core": "verl/trainer/ppo/v1/trainer_base.py",
}
VLLMS = {"is less than desired GPU memory utilization"}
"""Of a package that need not be there."""
WRITTEN = {"+fgrpo="}
"""What the user has written."""


def normal(source: str) -> str:
    """Source as its strings are printed, literals joined and their values as `...`; and as it stands."""
    return PLACE.sub("...", STRING_JOIN.sub("", source).replace('\\"', '"')) + source


def printed() -> list[str]:
    """The code spans in the first columns of the tables, cut where a value stands."""
    firsts = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| ")]
    spans = [span for first in firsts for span in re.findall(r"`([^`]+)`", first)]
    return [part.strip(" ;()") for span in spans for part in span.split("...") if len(part.strip(" ;().:,")) > 3]


@pytest.fixture(scope="module")
def ours() -> str:
    files = [*(ROOT / "fgrpo_plugin").rglob("*.py"), *(ROOT / "fgrpo_plugin").rglob("*.yaml")]
    return "\n".join(normal(path.read_text()) for path in sorted(files))


def test_every_text_is_printed_by_the_code(ours):
    import importlib.util

    found = printed()
    assert len(found) > 50
    site = Path(importlib.util.find_spec("verl").origin).parents[1]
    # A constant's value may stand apart from the sentence that prints it.
    ours = ours.replace("holds no ...: preference rows", "holds no f_divergence.json: preference rows")
    for text in found:
        where = normal((site / VERLS[text]).read_text()) if text in VERLS else ours
        assert text in VLLMS | WRITTEN or text in where, text


def test_a_text_that_nobody_prints_is_noticed(ours):
    assert "the rollout engine has gone fishing" not in ours and normal('f"a {x} "\n  f"b"').startswith('f"a ... b"')


def test_the_bounds_of_the_warning_are_those_of_the_code():
    from fgrpo_plugin.host.driver.step_news import ROLLOUT_DIFFERENCE_WARNING

    found = re.search(r"warning above ([\d.]+) where rollouts are of the\s+current weights, and above ([\d.]+)", PAGE)
    assert tuple(map(float, found.groups())) == (
        ROLLOUT_DIFFERENCE_WARNING["fresh"],
        ROLLOUT_DIFFERENCE_WARNING["stale"],
    )


def test_metrics_that_the_steps_name_are_logged():
    names = (ROOT / "fgrpo_plugin" / "host" / "metrics.yaml").read_text()
    steps = PAGE.split("### The reward does not rise")[1].split("### Other symptoms")[0]
    metrics = re.findall(r"`((?:[a-z]+_)+(?:share|slope|gap|margin|unaligned))`", steps)
    assert len(metrics) >= 6
    assert all(name in names for name in metrics), metrics
