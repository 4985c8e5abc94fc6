"""Tables, picture and JSON of the separation, number by number."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt

from fgrpo_plugin.eval.separation import Estimation, Separation
from fgrpo_plugin.eval.separation_report import (
    ModelSeparation,
    as_json,
    draw,
    layer_table,
    model_table,
    notes,
    settings_line,
)

NOTHING = Separation(0.0, 0.0, 0.0, 0.0, 0.0, directions=0, share=0.0)
FIRST = Separation(0.5, 0.4, 0.61, 0.2, 0.3, directions=8, share=0.75)
SECOND = Separation(1.25, 1.0, 1.5, 0.21, 0.345, directions=8, share=0.5)
AT_CHANCE = Separation(0.25, 0.1, 0.4, 0.2, 0.25, directions=6, share=1.0)
MODELS = {
    "base": ModelSeparation((NOTHING, FIRST, SECOND), {"from": "a", "tokens": {"safe": 40.0}}),
    "rl": ModelSeparation((NOTHING, AT_CHANCE), {"from": "b"}),
}


def test_a_line_a_model_has_its_largest_distance_and_how_many_layers_are_above_chance():
    assert model_table(MODELS) == (
        ["model", "largest distance", "at layer", "chance there, 95 %", "layers above chance"],
        [
            ["base", "1.250 [1.000, 1.500]", "2", "0.345", "2 of 3"],
            ["rl", "0.250 [0.100, 0.400]", "1", "0.250", "0 of 2"],
        ],
    )
    assert ModelSeparation((NOTHING, SECOND, SECOND), {}).largest == 1


def test_a_line_a_layer_has_every_models_distance_beside_its_chance_level():
    head, rows = layer_table(MODELS)
    assert head == ["layer", "base", "base: chance mean, 95 %", "rl", "rl: chance mean, 95 %"]
    assert rows == [
        ["0", "0.000 [0.000, 0.000]", "0.000, 0.000", "0.000 [0.000, 0.000]", "0.000, 0.000"],
        ["1", "0.500 [0.400, 0.610]", "0.200, 0.300", "0.250 [0.100, 0.400]", "0.200, 0.250"],
        ["2", "1.250 [1.000, 1.500]", "0.210, 0.345", "", ""],
    ]


def test_layers_that_vary_in_few_directions_are_named():
    assert notes(MODELS, 8) == [
        "base: states vary in fewer than 8 directions in layer 0 (0)",
        "rl: states vary in fewer than 8 directions in layer 0 (0), 1 (6)",
    ]
    assert notes({"base": ModelSeparation((FIRST,), {})}, 8) == []


def test_how_the_figures_were_made():
    assert settings_line(Estimation(4, 0.1, 500), (60, 52)) == (
        "60 safe and 52 harmful prompts; 4 directions, shrinkage 0.1; intervals: 95 %, bootstrap over prompts; chance: "
        "mean and 95 % quantile of 500 relabellings"
    )


def test_the_json_holds_everything():
    found = json.loads(json.dumps(as_json(MODELS, {"directions": 8})))
    assert found["settings"] == {"directions": 8}
    assert found["models"]["base"]["from"] == "a" and found["models"]["base"]["tokens"] == {"safe": 40.0}
    layers = [Separation(**layer) for layer in found["models"]["base"]["layers"]]
    assert layers == [NOTHING, FIRST, SECOND] and len(found["models"]["rl"]["layers"]) == 2


def test_the_picture_has_a_line_a_band_and_a_dashed_chance_level_for_each_model(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    target = draw(MODELS, tmp_path / "separation.png", "a title")
    assert target.read_bytes().startswith(b"\x89PNG")
    axes = plt.gcf().axes[0]
    base, chance, other, _ = axes.get_lines()
    assert list(base.get_xdata()) == [0, 1, 2] and list(base.get_ydata()) == [0.0, 0.5, 1.25]
    assert list(chance.get_ydata()) == [0.0, 0.3, 0.345] and chance.get_linestyle() == "--"
    assert list(other.get_ydata()) == [0.0, 0.25]
    (corners,) = axes.collections[0].get_paths()
    assert {tuple(corner) for corner in np.round(corners.vertices, 6)} >= {(1, 0.4), (1, 0.61), (2, 1.0), (2, 1.5)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["base", "rl", "chance, 95 %"]
    assert axes.get_ylim()[0] == 0 and axes.get_title() == "a title" and "nats" in axes.get_ylabel()
    monkeypatch.undo()
    plt.close("all")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "separation.png").write_text("the last one")

    def breaks_off(figure, target, **more):
        (target.write if hasattr(target, "write") else target.write_bytes)(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        draw(MODELS, tmp_path / "separation.png", "a title")
    assert (tmp_path / "separation.png").read_text() == "the last one"
