"""The separation that is reported: its prompts, its tables, and what the page says of them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from fgrpo_plugin.eval.prompt_sets import read_prompts
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

HERE = Path(__file__).parents[2] / "experiments" / "separation"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("separation_experiment", HERE / "separation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(script):
    return json.loads(script.RESULTS.read_text())


def test_the_prompts_are_pairs_alike_in_length(script):
    harmful, safe = (
        [one.chat[0]["content"] for one in found.asked.values()]
        for found in read_prompts(harmful=[script.HARMFUL], safe=[script.SAFE])
    )
    assert len(safe) == len(harmful) == 60 and not set(safe) & set(harmful)
    lengths = [np.mean([len(text.split()) for text in side]) for side in (safe, harmful)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.15)


def test_the_tables_are_those_of_the_results(script, results):
    for name, text in script.tables(results).items():
        assert (HERE / name).read_text() == text + "\n", "run `make docs`"
    assert results["settings"]["prompts"] == {"safe": 60, "harmful": 60}


def test_the_picture_is_drawn_of_the_results(script, results, tmp_path):
    assert script.PICTURE.is_file()
    assert script.draw(script.read(results), tmp_path / "picture.png", "").stat().st_size > 10_000


def test_the_page_says_what_the_results_say(script, results):
    """docs/separation.md: above chance in every layer but 13 and 0, most clearly from layer 16, untrained in none."""
    models = script.read(results)
    trained, untrained = (models[name].layers for name in (script.TRAINED, script.UNTRAINED))
    assert [at for at, layer in enumerate(trained) if layer.distance <= layer.chance_high] == [0, 13]
    excess = [layer.distance - layer.chance_high for layer in trained]
    assert min(excess[16:]) > max(excess[3:16])
    assert not [layer for layer in untrained if layer.distance > layer.chance_high]
    late, early = (np.mean([layer.chance for layer in part]) for part in (trained[16:], trained[1:16]))
    assert late > 1.4 * early  # "it rises ..., as in the later layers below"
    same = next(one for one in results["compared"] if (one["directions"], one["shrinkage"]) == (8, 0.05))
    assert same["distance"] == trained[-1].distance and same["chance_high"] == trained[-1].chance_high
    assert len(trained) == 31 and "no GPU" in results["made"]


def test_the_untrained_model_has_the_shape_of_the_trained_one(script, tmp_path):
    model = save_model(build_model(build_tokenizer(), 3), build_tokenizer(), tmp_path / "model")
    folder = script.untrained(model, tmp_path / "untrained")
    first, other = (AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (model, folder))
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in other.items()}
    weight = "model.layers.0.mlp.down_proj.weight"
    assert not np.allclose(first[weight], other[weight])
    again = script.untrained(model, tmp_path / "again")
    assert np.array_equal(AutoModelForCausalLM.from_pretrained(again).state_dict()[weight], other[weight])


def test_other_settings_are_those_of_the_last_layer(script, tmp_path):
    model = save_model(build_model(build_tokenizer(), 3), build_tokenizer(), tmp_path / "model")
    found = script.compared(model, tmp_path / "states")
    assert [(one["directions"], one["shrinkage"]) for one in found] == list(script.SETTINGS)
    assert found[0]["share"] < found[1]["share"] < found[2]["share"] == found[4]["share"]
    assert found[2]["chance"] < found[4]["chance"]  # what the shrinkage takes away
