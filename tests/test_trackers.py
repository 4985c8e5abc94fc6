"""Our metrics in verl's trackers, read back from what each leaves; and what docs/trackers.md says of them."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgrpo_plugin.host.metric_table import METRICS

DOCS = Path(__file__).parents[1] / "docs"
STEPS = (1, 2)


def value(number: int, step: int) -> float:
    """A number of its own for each metric and step, exact in float32."""
    return (number + 1) / 8 + step * 64


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Path:
    """What verl's own class leaves of every metric of ours, in two steps."""
    from verl.utils.tracking import Tracking

    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID"):
            patch.delenv(name, raising=False)
        for name, given in (("TENSORBOARD_DIR", "curves"), ("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
            patch.setenv(name, given)
        tracking = Tracking("trial", "first", ["console", "file", "tensorboard", "wandb"])
        for step in STEPS:
            tracking.log({metric.name: value(number, step) for number, metric in enumerate(METRICS)}, step=step)
        tracking.finish()
    return folder


EXPECTED = {metric.name: [(step, value(number, step)) for step in STEPS] for number, metric in enumerate(METRICS)}


def test_tensorboard_has_every_metric(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged / "curves")).Reload()
    assert {name: [(one.step, one.value) for one in events.Scalars(name)] for name in EXPECTED} == EXPECTED


def test_wandb_has_every_metric_without_a_network(logged):
    (file,) = logged.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list] = {name: [] for name in EXPECTED}
    for record in wandb_records(file.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, steps in found.items():
                if name in items:
                    steps.append((record.history.step.num, items[name]))
    assert found == EXPECTED


def wandb_records(data: bytes) -> Iterator:
    """Records of wandb's file, which is a log as LevelDB writes it behind seven bytes: blocks of pieces of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, block, whole = 7, 1 << 15, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield Record.FromString(whole)
            whole = b""


def test_the_page_of_trackers_names_every_one_of_verl_s():
    from verl.utils.tracking import Tracking

    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "trackers.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(Tracking.supported_backend)


def test_files_and_tensorboard_are_where_the_page_of_trackers_says(tmp_path, monkeypatch):
    from verl.utils.tracking import Tracking

    for name in ("TENSORBOARD_DIR", "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def log(step: int) -> None:
        tracking = Tracking("trial", "first", ["console", "file", "tensorboard"])
        tracking.log({"actor/f_divergence/clipped_share": 0.25, "val-core/openai/gsm8k/acc/mean@1": 0.5}, step=step)
        tracking.finish()

    log(1)
    log(2)  # as a resumed run does
    (line,) = Path("trial/first.jsonl").read_text().splitlines()  # the first line is gone
    assert json.loads(line) == {
        "step": 2,
        "data": {"actor/f_divergence/clipped_share": 0.25, "val-core/openai/gsm8k/acc/mean@1": 0.5},
    }
    assert any(Path("tensorboard_log/trial/first").iterdir())
    monkeypatch.setenv("TENSORBOARD_DIR", "elsewhere")
    log(3)
    assert any(path.is_file() for path in Path("elsewhere").iterdir())


def test_the_dashboard_s_curves_of_ours_are_metrics_that_we_log():
    page = (DOCS / "trackers.md").read_text()
    named = re.findall(r"`((?:actor/f_divergence|training|val-preference)/\w+)`", page)
    assert len(named) >= 6 and set(named) <= {metric.name for metric in METRICS}
