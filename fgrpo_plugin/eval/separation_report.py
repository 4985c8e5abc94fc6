"""What is shown of the separation of several models: tables, a picture, and every figure as JSON."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.separation import Estimation, Separation
from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.foreign_text import picture_text


@dataclass(frozen=True)
class ModelSeparation:
    """A model's layers.

    Attributes:
        layers: in their order; the first is what enters the model's first layer.
        about: what else the JSON says of the model.
    """

    layers: tuple[Separation, ...]
    about: Mapping[str, Any]

    @property
    def largest(self) -> int:
        """The layer of the largest distance; the first of several."""
        return max(range(len(self.layers)), key=lambda number: self.layers[number].distance)


Models = Mapping[str, ModelSeparation]
Table = tuple[list[str], list[list[str]]]


def model_table(models: Models) -> Table:
    """A line a model: the layer in which the kinds lie furthest apart, and how many layers are above chance."""
    head = ["model", "largest distance", "at layer", "chance there, 95 %", "layers above chance"]
    rows = []
    for name, model in models.items():
        top = model.layers[model.largest]
        above = sum(layer.distance > layer.chance_high for layer in model.layers)
        rows.append(
            [name, _distance(top), str(model.largest), f"{top.chance_high:.3f}", f"{above} of {len(model.layers)}"]
        )
    return head, rows


def layer_table(models: Models) -> Table:
    """A line a layer: every model's distance with its interval, and its chance level."""
    head, rows = ["layer"], []
    for name in models:
        head += [name, f"{name}: chance mean, 95 %"]
    for number in range(max(len(model.layers) for model in models.values())):
        row = [str(number)]
        for model in models.values():
            there = number < len(model.layers)
            layer = model.layers[number] if there else None
            row += [_distance(layer), f"{layer.chance:.3f}, {layer.chance_high:.3f}"] if layer else ["", ""]
        rows.append(row)
    return head, rows


def _distance(layer: Separation) -> str:
    return f"{layer.distance:.3f} [{layer.low:.3f}, {layer.high:.3f}]"


def notes(models: Models, directions: int) -> list[str]:
    """A sentence for each model some of whose layers vary in fewer directions than were asked for."""
    found = []
    for name, model in models.items():
        few = [f"{at} ({layer.directions})" for at, layer in enumerate(model.layers) if layer.directions < directions]
        if few:
            found.append(f"{name}: states vary in fewer than {directions} directions in layer {', '.join(few)}")
    return found


def as_json(models: Models, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything: the settings, and of each model what is said about it and each layer's figures, in nats."""
    return {
        "settings": dict(settings),
        "models": {
            name: dict(model.about) | {"layers": [asdict(layer) for layer in model.layers]}
            for name, model in models.items()
        },
    }


def draw(models: Models, target: Path, title: str) -> Path:
    """Distance against layer: a line and its interval's band a model, dashed the 95 % quantile of its chance level.

    Args:
        models: name -> layers.
        target: the PNG.
        title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    for index, (name, model) in enumerate(models.items()):
        colour, numbers = f"C{index}", range(len(model.layers))
        axes.plot(
            numbers, [layer.distance for layer in model.layers], color=colour, linewidth=2, label=picture_text(name)
        )
        low, high = ([getattr(layer, end) for layer in model.layers] for end in ("low", "high"))
        axes.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
        chance = [layer.chance_high for layer in model.layers]
        axes.plot(numbers, chance, color=colour, linewidth=1, linestyle="--")
    axes.set(xlabel="layer (0: the embedding)", ylabel="Bhattacharyya distance, nats", title=picture_text(title))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    dashed = Line2D([], [], color="grey", linewidth=1, linestyle="--", label="chance, 95 %")
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], dashed], frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write_whole(target, picture.getvalue())
    return target


def settings_line(how: Estimation, counts: Sequence[int]) -> str:
    """Return how the figures were made, in one line below the tables."""
    return (
        f"{counts[0]} safe and {counts[1]} harmful prompts; {how.directions} directions, shrinkage {how.shrinkage:g}; "
        f"intervals: 95 %, bootstrap over prompts; chance: mean and 95 % quantile of {how.resamples} relabellings"
    )
