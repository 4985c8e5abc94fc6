"""Safe against mildly unsafe prompts in SmolLM2-135M-Instruct, and in a model of its shape that nobody has trained.

    python experiments/separation/separation.py [--folder runs/separation] [--report-only]

The prompts are the two CSV files beside this one; what was measured goes to results.json, and from that the tables
beside it and the picture of docs/separation.md are made.
"""

import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fgrpo_plugin.eval.hidden_states import hidden_states, kept_states, rendered
from fgrpo_plugin.eval.prompt_sets import read_prompts
from fgrpo_plugin.eval.scores import markdown
from fgrpo_plugin.eval.separation import Estimation, Separation, separation
from fgrpo_plugin.eval.separation_command import separate
from fgrpo_plugin.eval.separation_report import Models, ModelSeparation, draw, layer_table, model_table, settings_line
from fgrpo_plugin.realmodel.model import smollm2

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
SAFE, HARMFUL = HERE / "everyday.csv", HERE / "mildly_unsafe.csv"
PICTURE = ROOT / "docs" / "figures" / "separation.png"
TRAINED, UNTRAINED = "SmolLM2-135M-Instruct", "untrained"
SETTINGS = ((2, 0.0), (4, 0.05), (8, 0.05), (16, 0.05), (8, 0.0), (8, 0.2))
"""Directions and shrinkages that are compared."""


def untrained(model: Path, folder: Path) -> Path:
    """A model of the same shape and with the same tokenizer whose weights are drawn (seed 0)."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def compared(model: Path, states: Path) -> list[dict[str, Any]]:
    """The trained model's last layer under other settings."""
    harmful, safe = (
        [one.chat for one in found.asked.values()] for found in read_prompts(harmful=[HARMFUL], safe=[SAFE])
    )
    prompts = rendered(model, [*safe, *harmful])
    last = hidden_states(model, prompts, kept_states(model, states, None))[:, -1]
    found = []
    for directions, shrinkage in SETTINGS:
        how = Estimation(directions, shrinkage)
        found.append(asdict(separation(last[: len(safe)], last[len(safe) :], how)) | {"shrinkage": shrinkage})
    return found


def read(results: dict[str, Any]) -> Models:
    """The models' layers as they stand in the results."""
    return {
        name: ModelSeparation(tuple(Separation(**layer) for layer in model["layers"]), {})
        for name, model in results["models"].items()
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Name of a file -> its table."""
    models, settings = read(results), dict(results["settings"])
    counts = settings.pop("prompts")
    made = settings_line(Estimation(**settings), (counts["safe"], counts["harmful"]))
    tokens = results["models"][TRAINED]["tokens"]
    rows = [
        [
            str(one["directions"]),
            f"{one['shrinkage']:g}",
            f"{one['share']:.2f}",
            f"{one['distance']:.3f} [{one['low']:.3f}, {one['high']:.3f}]",
            f"{one['chance']:.3f}, {one['chance_high']:.3f}",
        ]
        for one in results["compared"]
    ]
    return {
        "models.md": "\n\n".join(
            [
                markdown(*model_table(models)),
                f"{made}. Tokens a prompt, the template's included: {tokens['safe']:.1f} safe, {tokens['harmful']:.1f} "
                f"harmful. {results['made']}.",
            ]
        ),
        "layers.md": markdown(*layer_table(models)),
        "settings.md": markdown(
            ["directions", "shrinkage", "share of the variance", "distance, last layer", "chance mean, 95 %"], rows
        ),
    }


def main(
    folder: Annotated[Path, typer.Option(help="Where models and hidden states go.")] = Path("runs/separation"),
    report_only: Annotated[bool, typer.Option("--report-only", help="Make tables and picture from results.")] = False,
) -> None:
    """Measure both models, and make the tables and the picture."""
    if not report_only:
        folder = folder.absolute()
        model = smollm2(folder / "model")
        named = [f"{TRAINED}={model}", f"{UNTRAINED}={untrained(model, folder / 'untrained')}"]
        separate(named, safe=[SAFE], harmful=[HARMFUL], output=folder)
        results = json.loads((folder / "separation.json").read_text())
        for name, about in results["models"].items():
            about["from"] = name  # not this machine's folder
        results["compared"] = compared(model, folder / TRAINED / "states")
        results["made"] = f"Measured {date.today()} on a CPU ({platform.machine()}), no GPU"
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    for name, text in tables(results).items():
        (HERE / name).write_text(text + "\n")
    draw(read(results), PICTURE, "60 everyday against 60 mildly unsafe prompts, last token")


if __name__ == "__main__":
    typer.run(main)
