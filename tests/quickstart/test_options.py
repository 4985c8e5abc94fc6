"""What the command line refuses before anything is written."""

from pathlib import Path

import pytest

from fgrpo_plugin.quickstart.options import QuickstartError, QuickstartOptions, comes_with_the_package
from fgrpo_plugin.quickstart.run import run_quickstart


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(algo="ppo"), "ALGO=ppo"),
        (dict(divergence="nope"), "DIVERGENCE=nope"),
        (dict(steps=0), "STEPS=0"),
        (dict(seed=-1), "SEED=-1"),
        (dict(learning_rate=2.0), "learning-rate=2.0"),
        (dict(model=Path("/nowhere/model")), "MODEL=/nowhere/model: there is no such folder"),
        (dict(data=Path("/nowhere/rows.jsonl")), "DATA=/nowhere/rows.jsonl: there is no such file"),
        (dict(divergence="alpha"), "DIVERGENCE=alpha needs its order"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(QuickstartError) as error:
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", **options))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "comes"),
    [
        (dict(), True),
        (dict(algo="grpo"), True),
        (dict(divergence="kl", steps=7, learning_rate=0.0, overrides=("data.seed=1",)), True),
        (dict(algo="f_hal"), False),
        (dict(seed=1), False),
        (dict(warm_up=True), False),
        (dict(data=Path("rows.jsonl")), False),
        (dict(model=Path("model")), False),
    ],
)
def test_the_packages_model_is_that_of_the_default_seed_on_the_addition_task(options, comes):
    assert comes_with_the_package(QuickstartOptions(**options)) is comes


def test_a_model_of_ones_own_is_not_warmed_up(tmp_path):
    with pytest.raises(QuickstartError, match="--warm-up with MODEL=own: a model of yours is not warmed up"):
        QuickstartOptions(warm_up=True, model=Path("own")).check()


def test_a_model_without_tokenizer_and_a_used_folder_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(QuickstartError, match="the model has no tokenizer"):
        run_quickstart(QuickstartOptions(run_dir=tmp_path / "run", model=tmp_path))
    with pytest.raises(QuickstartError, match="is not empty"):
        run_quickstart(QuickstartOptions(run_dir=tmp_path))
