"""``fgrpo eval math`` and ``fgrpo eval table``: what the command line takes, checked before anything is sampled."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fgrpo_plugin.eval import options
from fgrpo_plugin.eval.evaluating import evaluate, named_models
from fgrpo_plugin.eval.mathematics import scored_problems
from fgrpo_plugin.eval.problem_sets import INSTRUCTION, read_sets
from fgrpo_plugin.eval.sampling import Engine, Sampling
from fgrpo_plugin.eval.scores import SCORES
from fgrpo_plugin.eval.table import Evaluation, overall_table, read_evaluation, set_table
from fgrpo_plugin.progress import Lines, follower, progress_bars

Ks = Annotated[list[int] | None, typer.Option("--k", help="pass@k and maj@k; repeatable; the samples if not given.")]


def math(
    models: options.Models,
    data: Annotated[list[Path], typer.Option(help="File of problems, or folder of such files; repeatable.")],
    output: options.Output = Path("evaluation"),
    samples: Annotated[int, typer.Option(help="Responses a problem.")] = 4,
    k: Ks = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy, with one sample.")] = 0.6,
    top_p: options.TopP = 0.95,
    max_tokens: options.MaxTokens = 1024,
    limit: options.Limit = None,
    instruction: Annotated[
        str, typer.Option(help="Said behind each problem; problems in verl's format are asked as they are.")
    ] = INSTRUCTION,
    seed: options.Seed = 0,
    base: options.Base = None,
    server: options.Server = None,
    dtype: options.Dtype = None,
    tensor_parallel: options.TensorParallel = 1,
    chat_template: options.ChatTemplate = None,
) -> None:
    """Sample models on mathematical problems: pass@1, pass@k, maj@k with intervals, mean rank, Relative Overall."""
    how = Sampling(samples, temperature, top_p, max_tokens, seed)
    named, engine = named_models(models), Engine(dtype, tensor_parallel, chat_template)
    options.check(
        named, output, k=k or (), samples=samples, limit=limit, base=base, server=server, engine=engine
    )  # fmt: skip
    sets = read_sets(data, limit=limit, instruction=instruction)
    console = Console()
    for one in sets:
        console.print(f"{one.name}: {len(one.asked)} problems x {samples} samples", soft_wrap=True)
    settings = {"sampling": asdict(how) | {"server": server is not None}}
    with progress_bars(console) as progress:
        follow, sample = follower(progress, Lines(console)), options.sampler(server, how, engine)
        evaluate(named, sets, output, sample, scored_problems, settings=settings, follow=follow)
    found = read_evaluation(output, k, list(named), [one.name for one in sets])  # the folder may hold more
    options.write_tables(_shown(found, base or next(iter(named)), output, console), output, console)


def table(
    folder: Annotated[Path, typer.Argument(help="Of `fgrpo eval math`.")],
    model: Annotated[list[str] | None, typer.Option(help="Name of a model; repeatable; all if not given.")] = None,
    k: Ks = None,
    base: options.Base = None,
) -> None:
    """Print the table of models that were evaluated, in one call or in several."""
    evaluation = read_evaluation(folder, k, model)
    if base is not None and base not in evaluation.results:
        raise ValueError(f"--base {base} is none of the models {', '.join(evaluation.results)}.")
    console = Console()
    options.write_tables(_shown(evaluation, base, folder, console), folder, console)


def _shown(evaluation: Evaluation, base: str | None, folder: Path, console: Console) -> list[str]:
    several = len(evaluation.results) > 1
    text = [options.show_table("", *set_table(evaluation, base if several else None), console)]
    if several:
        text.append(options.show_table("over all sets", *overall_table(evaluation, base), console))
    for model, sets in evaluation.results.items():
        for one, result in sets.items():
            if result.slow:
                file = folder / model / f"{one}{SCORES}"
                console.print(
                    f"{model} on {one}: {result.slow} answers took math-verify too long and count as wrong ({file})",
                    soft_wrap=True,
                )
    return text
