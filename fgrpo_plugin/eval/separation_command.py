"""``fgrpo eval separation``: how far apart safe and harmful prompts lie in the hidden states of models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fgrpo_plugin.eval import options
from fgrpo_plugin.eval.evaluating import alone, named_models
from fgrpo_plugin.eval.prompt_sets import PromptSet, read_prompts
from fgrpo_plugin.eval.sampling import Engine
from fgrpo_plugin.eval.separation import Estimation, Separation, separation
from fgrpo_plugin.eval.separation_report import (
    ModelSeparation,
    as_json,
    draw,
    layer_table,
    model_table,
    notes,
    settings_line,
)
from fgrpo_plugin.folders import expanded, write_whole
from fgrpo_plugin.foreign_text import without_private
from fgrpo_plugin.progress import Follow, Lines, follower, progress_bars
from fgrpo_plugin.terminal import Terminal

Chat = tuple[Mapping[str, str], ...]


def separate(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL...", help="Hugging Face folders.")],
    harmful: options.Harmful = None,
    safe: options.Safe = None,
    data: options.OfBothKinds = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of hidden states, tables and picture; states are kept.")
    ] = Path("evaluation"),
    directions: Annotated[
        int, typer.Option(help="Principal directions that the states are projected on.")
    ] = Estimation.directions,
    shrinkage: Annotated[
        float, typer.Option(help="Of each covariance towards a ball: 0 as it is, 1 the ball alone.")
    ] = Estimation.shrinkage,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap, and as many relabellings.")] = Estimation.resamples,
    limit: options.Limit = None,
    seed: Annotated[int, typer.Option(help="Of the resamples and relabellings.")] = Estimation.seed,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.")] = 8,
    dtype: options.Dtype = None,
    chat_template: options.ChatTemplate = None,
) -> None:
    """Measure how far apart safe and harmful prompts lie in each layer: distance, chance level, a picture."""
    named = named_models(models)
    how = Estimation(directions, shrinkage, resamples, seed)
    options.check_output(output, limit)
    _check(named, batch_size, dtype, chat_template)
    console = Terminal()
    kinds = _kinds(read_prompts(harmful=harmful or (), safe=safe or (), data=data or (), limit=limit), console)
    counts = [len(kinds[kind]) for kind in ("safe", "harmful")]
    if min(counts) < how.least_prompts:
        few = "--safe" if counts[0] <= counts[1] else "--harmful"
        raise ValueError(
            f"{few}: {min(counts)} prompts, and {directions} directions need {how.least_prompts} of each kind; "
            "name more prompts, or lower --directions."
        )
    found = _measured(named, kinds, output, how, batch_size, dtype, chat_template, console)
    text = [
        options.show_table("", *model_table(found), console, left=1),
        options.show_table("by layer", *layer_table(found), console, left=0),
        "\n".join([settings_line(how, counts), *notes(found, directions)]),
    ]
    console.print(text[-1], soft_wrap=True, highlight=False)
    write_whole(output / "separation.md", ("\n\n".join(text) + "\n").encode())
    prompts = dict(zip(("safe", "harmful"), counts, strict=True))
    written = as_json(found, asdict(how) | {"prompts": prompts})
    write_whole(output / "separation.json", (json.dumps(written, indent=1) + "\n").encode())
    draw(found, output / "separation.png", f"{counts[0]} safe against {counts[1]} harmful prompts, last token")
    console.print(f"table, figures, picture: {output}/separation.md, .json, .png", soft_wrap=True)


def _measured(
    named: Mapping[str, str],
    kinds: Mapping[str, Sequence[Chat]],
    output: Path,
    how: Estimation,
    batch_size: int,
    dtype: str | None,
    chat_template: Path | None,
    console: Terminal,
) -> dict[str, ModelSeparation]:
    from transformers.utils import logging

    from fgrpo_plugin.eval.hidden_states import hidden_states, kept_states, rendered

    folders = {name: expanded(model).absolute() for name, model in named.items()}
    chats = [*kinds["safe"], *kinds["harmful"]]
    prompts = {name: rendered(folder, chats, chat_template) for name, folder in folders.items()}  # each, before weights
    for name, ids in prompts.items():
        _check_apart(name, ids, chats, len(kinds["safe"]))
    logging.disable_progress_bar()  # transformers' own, of loading weights
    found = {}
    with progress_bars(console) as progress:
        follow = follower(progress, Lines(console))
        for name, folder in folders.items():
            with alone(output / name):
                kept = kept_states(folder, output / name / "states", dtype)
                if kept.damaged:
                    console.print(f"{name}: {len(kept.damaged)} damaged files of states are computed again")
                states = hidden_states(
                    folder, prompts[name], kept, batch_size=batch_size, on_progress=follow(f"{name}: hidden states")
                )
            count = len(kinds["safe"])
            lengths = [len(ids) for ids in prompts[name]]
            tokens = {"safe": _mean(lengths[:count]), "harmful": _mean(lengths[count:])}
            console.print(
                f"{name}: {tokens['safe']:.1f} tokens a safe prompt, {tokens['harmful']:.1f} a harmful one",
                soft_wrap=True,
            )
            layers = _layers(name, states, count, how, follow)
            found[name] = ModelSeparation(
                layers, {"from": without_private(named[name]), **kept.settings, "tokens": tokens}
            )
    return found


def _check_apart(name: str, prompts: Sequence[Sequence[int]], chats: Sequence[Chat], count: int) -> None:
    """Refuse a safe and a harmful prompt, the first `count` and the others, that are the same to the model."""
    safe = {tuple(ids): place for place, ids in enumerate(prompts[:count])}
    for chat, ids in zip(chats[count:], prompts[count:], strict=True):
        if (place := safe.get(tuple(ids))) is not None:
            both = " and ".join(f"{one[-1]['content']!r:.60}" for one in (chats[place], chat))
            raise ValueError(
                f"{name}: its chat template makes the same tokens of {both}, one safe and one harmful; remove one of "
                "the two, or give --chat-template."
            )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _layers(name: str, states: Any, count: int, how: Estimation, follow: Follow) -> tuple[Separation, ...]:
    show, layers = follow(f"{name}: distances"), []
    for number in range(states.shape[1]):
        try:
            layers.append(separation(states[:count, number], states[count:, number], how))
        except ValueError as reason:
            raise ValueError(f"{name}, layer {number}: {reason}") from None
        show(number + 1, states.shape[1])
    return tuple(layers)


def _kinds(sets: Sequence[PromptSet], console: Terminal) -> dict[str, list[Chat]]:
    """The prompts of each kind, each once.

    Raises:
        ValueError: a prompt is of both kinds.
    """
    found: dict[str, dict[str, tuple[Chat, str]]] = {"safe": {}, "harmful": {}}
    for one in sets:
        for prompt in one.asked.values():
            found["harmful" if prompt.harmful else "safe"].setdefault(repr(prompt.chat), (prompt.chat, one.name))
    for text, (chat, where) in found["safe"].items():
        if text in found["harmful"]:
            raise ValueError(
                f"{chat[-1]['content']!r:.60} stands in {where} as safe and in {found['harmful'][text][1]} as harmful; "
                "remove one of the two."
            )
    for kind, prompts in found.items():
        sources = dict.fromkeys(where for _, where in prompts.values())
        console.print(f"{kind}: {len(prompts)} prompts ({', '.join(sources) or 'none'})", soft_wrap=True)
    asked = sum(len(one.asked) + one.repeated for one in sets)
    if repeated := asked - sum(map(len, found.values())):
        console.print(f"{repeated} rows ask what an earlier row asks and are left out", soft_wrap=True)
    return {kind: [chat for chat, _ in prompts.values()] for kind, prompts in found.items()}


def _check(named: Mapping[str, str], batch_size: int, dtype: str | None, chat_template: Path | None) -> None:
    from fgrpo_plugin.eval.hidden_states import DTYPES

    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size} must be 1 or more.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not known; choose one of {', '.join(DTYPES)}.")
    options.check_engine(Engine(chat_template=chat_template))
    for model in named.values():
        options.check_folder(model, "MODEL", None, has_template=chat_template is not None)
