"""``fgrpo plan``: overrides of verl to a `PlannedRun`, and the report."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.pinned import VERL
from fgrpo_plugin.terminal import Terminal


def plan(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTING=VALUE]...", help="Overrides of verl's configuration, as its main_ppo takes them."
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Config group of this package, for example math_7b.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Known model, or the path of a config.json; alone it is planned with group rlvr.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Known GPU, or a YAML file that describes one.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a node: trainer.n_gpus_per_node.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes: trainer.nnodes.")] = None,
    mean_prompt: Annotated[int | None, typer.Option(help="Mean tokens of a prompt; the longest if not given.")] = None,
    mean_response: Annotated[
        int | None, typer.Option(help="Mean tokens of a response; the longest if not given.")
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Number of the GPU or an assumption: memory_gib, matmul, node_memory_gib, ..."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; bytes and seconds.")] = False,
    measure_cpu: Annotated[
        Path | None, typer.Option(help="Measure this machine and write it there as a GPU (YAML); nothing else.")
    ] = None,
) -> None:
    """Predict memory and time of a run before its GPUs are booked; exit code 1 if it does not fit."""
    if measure_cpu is not None:
        _measure(measure_cpu)
        return

    from fgrpo_plugin.plan.gpus import find_gpu
    from fgrpo_plugin.plan.older_options import rewrite
    from fgrpo_plugin.plan.planned_run import Assumptions

    given = rewrite(changes or [])
    if gpu is None:
        raise ValueError("name the GPU: --gpu H100 (or a YAML file that describes one).")
    if recipe is None and model is None and not given.overrides:
        raise ValueError("name what to plan: --recipe math_7b, --model qwen2.5-7b, or overrides of verl.")
    for word in given.assumed:
        name, _, value = word.partition("=")
        _say(f"--{name.replace('_', '-')} {value} is written --assume {word}")
    numbers = assumptions([*given.assumed, *(assume or [])])
    device = find_gpu(gpu, **{key: numbers[key] for key in gpu_fields() if key in numbers})
    assumed = Assumptions(**{key: value for key, value in numbers.items() if key not in gpu_fields()})
    asked = {"model": model, "gpus_per_node": gpus, "nodes": nodes}
    asked = {field: value for field, value in asked.items() if value is not None}
    lengths = {"mean_prompt": mean_prompt, "mean_response": mean_response}

    if importlib.util.find_spec("verl") is None:
        raise ValueError(
            f"verl, whose configuration is planned, is not installed here; pip install verl=={VERL} (no GPU is needed)."
        )
    from fgrpo_plugin.plan import report
    from fgrpo_plugin.plan.compose import check_run, compose_run, first_words, read_run, refusal

    words, config = compose_run(first_words(recipe, model, given), asked, given, _say)
    notes = check_run(config)
    run, unmodelled = read_run(config, device, lengths)
    result = report.make_plan(run, assumed, words=words, notes=notes + unmodelled, refuses=refusal)
    if as_json:
        say(json.dumps(report.as_json(result), indent=2))
    else:
        report.print_plan(result, Terminal())
    if not result.fits:
        raise typer.Exit(1)


def _say(line: str) -> None:
    say(f"fgrpo plan: {line}", error=True)


def _measure(path: Path) -> None:
    from omegaconf import OmegaConf

    from fgrpo_plugin.plan.cpu import measure_cpu

    found = measure_cpu()
    OmegaConf.save(OmegaConf.create(found.described()), path)
    say(f"{found.tflops * 1000:.0f} GFLOP/s in float32, {found.bandwidth_gb:.1f} GB/s: use it with --gpu {path}")


def gpu_fields() -> tuple[str, ...]:
    """Numbers of a GPU that ``--assume`` takes."""
    from fgrpo_plugin.plan.gpus import Gpu

    return tuple(field.name for field in fields(Gpu) if field.name != "name")


def assumptions(words: list[str]) -> dict[str, Any]:
    """Values of ``--assume key=value``.

    Raises:
        ValueError: an unknown key, or a value that is no number.
    """
    from difflib import get_close_matches

    from fgrpo_plugin.plan.planned_run import Assumptions

    known, found = (*gpu_fields(), *(field.name for field in fields(Assumptions))), {}
    for word in words:
        key, _, value = word.partition("=")
        key = key.strip().replace("-", "_")
        if key not in known:
            near = get_close_matches(key, known)
            meant = f"nearest: {', '.join(near)}; known" if near else "known"
            raise ValueError(f"--assume {word}: {key} is not known; {meant}: {', '.join(known)}.")
        try:
            found[key] = float(value)
        except ValueError:
            raise ValueError(f"--assume {word}: write {key}= and a number.") from None
    return found
