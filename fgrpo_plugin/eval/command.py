"""``fgrpo eval math`` and ``fgrpo eval table``: what the command line takes, checked before anything is sampled."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fgrpo_plugin.eval import options, safety_command
from fgrpo_plugin.eval.evaluating import evaluate, named_models
from fgrpo_plugin.eval.mathematics import scored_problems
from fgrpo_plugin.eval.problem_sets import INSTRUCTION, read_sets
from fgrpo_plugin.eval.sampling import Engine, Sampling
from fgrpo_plugin.eval.scores import MATH, SAFETY, SCORES, read_scores
from fgrpo_plugin.eval.table import Evaluation, overall_table, read_evaluation, set_table
from fgrpo_plugin.progress import Lines, follower, progress_bars
from fgrpo_plugin.terminal import Terminal

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
    options.check(named, output, k=k or (), samples=samples, limit=limit, base=base, server=server, engine=engine)
    sets = read_sets(data, limit=limit, instruction=instruction)
    console = Terminal()
    for one in sets:
        console.print(f"{one.name}: {len(one.asked)} problems x {samples} samples", soft_wrap=True)
    settings = {"sampling": asdict(how) | {"server": server is not None}}
    with progress_bars(console) as progress:
        follow, sample = follower(progress, Lines(console)), options.sampler(server, how, engine)
        evaluate(named, sets, output, sample, scored_problems, settings=settings, follow=follow)
    found = read_evaluation(output, k, list(named), [one.name for one in sets])  # the folder may hold more
    options.write_tables(_shown(found, base or next(iter(named)), output, console), output, console)


def table(
    folder: Annotated[Path, typer.Argument(help="Of `fgrpo eval math` or `fgrpo eval safety`.")],
    model: Annotated[list[str] | None, typer.Option(help="Name of a model; repeatable; all if not given.")] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", help="As at the evaluation; repeatable; the samples if not given.")
    ] = None,
    base: options.Base = None,
    refusals: safety_command.Refusals = safety_command.DEFAULT_LIST,
) -> None:
    """Print the tables of models that were evaluated, in one call or in several."""
    safety_command.check_list(refusals)
    models = {kind: [*found] for kind, found in read_scores(folder).items()}
    kinds = [kind for kind, names in models.items() if model is None or set(model) & {*names}] or [MATH]
    named = model or [name for kind in kinds for name in models.get(kind, ())]
    if named and base is not None and base not in named:
        raise ValueError(f"--base {base} is none of the models {', '.join(dict.fromkeys(named))}.")
    console, text = Terminal(), []
    for kind in kinds:
        own = base if base in models.get(kind, ()) else None
        if kind == SAFETY:
            text += safety_command.shown(folder, refusals, k, model, None, own, console)
        else:
            text += _shown(read_evaluation(folder, k, model), own, folder, console)
    options.write_tables(text, folder, console)


def _shown(evaluation: Evaluation, base: str | None, folder: Path, console: Terminal) -> list[str]:
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
