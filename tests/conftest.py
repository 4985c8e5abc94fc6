"""Shared by the tests: quiet libraries, the composed configuration of stock verl, and figures for the documentation."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fgrpo_plugin.processes import MARKER

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Small tensors: beside other work a second thread makes tests that take seconds take minutes.
torch.set_num_threads(1)

# A script that starts the suite in the background hands SIGINT down as ignored; what the tests interrupt never sees it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser) -> None:
    parser.addoption("--figures", type=Path, help="Keep what tests measure in this JSON file, beside what it holds.")


@pytest.fixture(autouse=True)
def no_run_begins_here():
    """A test's own process is no run's: what it starts later would be taken for that run's, and be ended with it."""
    before = os.environ.get(MARKER)
    yield
    assert os.environ.get(MARKER) == before, "this test has made the suite's process a run's"


@pytest.fixture
def figure(request) -> Callable:
    """Print a measured figure, and keep it where --figures asks for it: docs/make/engines.py makes tables of them."""

    def keep(name: str, kind: str, value: float) -> None:
        print(f"{name}, {kind}: {value:.1e}")
        file = request.config.getoption("--figures")
        if file is not None:
            found = json.loads(file.read_text()) if file.is_file() else {}
            found.setdefault(name, {})[kind] = float(f"{value:.3g}")
            file.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")

    return keep


@pytest.fixture
def stock_config() -> Callable:
    """Compose ``ppo_trainer`` exactly as ``python -m verl.trainer.main_ppo`` does, with overrides."""
    import verl  # noqa: F401  (loads the plugin, which offers the config groups)
    from hydra import compose, initialize_config_module

    def make(*overrides: str):
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose("ppo_trainer", overrides=list(overrides))

    return make


@pytest.fixture
def inputs(tmp_path) -> list[str]:
    """Overrides that name a data file and a model folder which exist, for checks that look at them."""
    import pandas as pd

    from fgrpo_plugin.quickstart.model import build_tokenizer

    data = tmp_path / "rows.parquet"
    row = {"prompt": [{"role": "user", "content": "1+1="}], "data_source": "openai/gsm8k"}
    rows = [{**row, "reward_model": {"style": "rule", "ground_truth": "2"}}] * 1024  # verl's default batch
    pd.DataFrame(rows).to_parquet(data)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    build_tokenizer().save_pretrained(model)
    return [
        f"data.train_files={data}",
        f"data.val_files={data}",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
    ]
