"""``fgrpo eval math`` and ``fgrpo eval table``: what the command line takes, checked before anything is sampled."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fgrpo_plugin.eval.kept import Chats, Responses
from fgrpo_plugin.eval.mathematics import Sampler, evaluate, named_models
from fgrpo_plugin.eval.problem_sets import INSTRUCTION, read_sets
from fgrpo_plugin.eval.sampling import Engine, Sampling, responses
from fgrpo_plugin.eval.server import server_responses
from fgrpo_plugin.eval.table import SCORES, Evaluation, markdown, overall_table, read_evaluation, set_table
from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.progress import Lines, follower, progress_bars

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of responses and scores; what it holds is kept.")]
Base = Annotated[str | None, typer.Option(help="Name of the base model: 0 of Relative Overall; differences are to it.")]
Ks = Annotated[list[int] | None, typer.Option("--k", help="pass@k and maj@k; repeatable; the samples if not given.")]


def math(
    models: Annotated[
        list[str], typer.Argument(metavar="[NAME=]MODEL...", help="Hugging Face folders, or names at the server.")
    ],
    data: Annotated[list[Path], typer.Option(help="File of problems, or folder of such files; repeatable.")],
    output: Output = Path("evaluation"),
    samples: Annotated[int, typer.Option(help="Responses a problem.")] = 4,
    k: Ks = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy, with one sample.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Share of the probability that is sampled from.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Of a response.")] = 1024,
    limit: Annotated[int | None, typer.Option(help="Problems of each set; the same ones in every call.")] = None,
    instruction: Annotated[
        str, typer.Option(help="Said behind each problem; problems in verl's format are asked as they are.")
    ] = INSTRUCTION,
    seed: Annotated[int, typer.Option(help="Of vLLM.")] = 0,
    base: Base = None,
    server: Annotated[
        str | None, typer.Option(help="http://host:port/v1 of a server with OpenAI's protocol, in place of vLLM here.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights; float32 on a CPU, else as saved.")] = None,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share a model.")] = 1,
    chat_template: Annotated[
        Path | None, typer.Option(help="File of a chat template, in place of the model's.")
    ] = None,
) -> None:
    """Sample models on mathematical problems: pass@1, pass@k, maj@k with intervals, mean rank, Relative Overall."""
    how = Sampling(samples, temperature, top_p, max_tokens, seed)
    if bad := [one for one in k or () if not 1 <= one <= samples]:
        raise ValueError(f"--k {bad[0]} must lie between 1 and --samples {samples}.")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} must be 1 or more.")
    named = named_models(models)
    if base is not None and base not in named:
        raise ValueError(f"--base {base} is none of the models {', '.join(named)}.")
    engine = Engine(dtype, tensor_parallel, chat_template)
    if server is None:
        _check_models(named, engine)
    elif engine != Engine():
        raise ValueError("--dtype, --tensor-parallel and --chat-template are the server's own; leave them out.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder.")
    sets = read_sets(data, limit=limit, instruction=instruction)
    console = Console()
    for one in sets:
        console.print(f"{one.name}: {len(one.asked)} problems x {samples} samples", soft_wrap=True)
    sampling = asdict(how) | {"server": server is not None}
    with progress_bars(console) as progress:
        follow = follower(progress, Lines(console))
        evaluate(named, sets, output, _sampler(server, how, engine), sampling=sampling, follow=follow)
    found = read_evaluation(output, k, list(named), [one.name for one in sets])  # the folder may hold more
    _show(found, base or next(iter(named)), output, console)


def table(
    folder: Annotated[Path, typer.Argument(help="Of `fgrpo eval math`.")],
    model: Annotated[list[str] | None, typer.Option(help="Name of a model; repeatable; all if not given.")] = None,
    k: Ks = None,
    base: Base = None,
) -> None:
    """Print the table of models that were evaluated, in one call or in several."""
    evaluation = read_evaluation(folder, k, model)
    if base is not None and base not in evaluation.results:
        raise ValueError(f"--base {base} is none of the models {', '.join(evaluation.results)}.")
    _show(evaluation, base, folder, Console())


def _check_models(models: Mapping[str, str], engine: Engine) -> None:
    from fgrpo_plugin.host.settings.inputs import check_model, load_tokenizer  # with omegaconf: not at every start

    if engine.tensor_parallel < 1:
        raise ValueError(f"--tensor-parallel {engine.tensor_parallel} must be 1 or more.")
    if engine.chat_template is not None and not engine.chat_template.is_file():
        raise ValueError(f"--chat-template {engine.chat_template}: there is no such file.")
    for model in models.values():
        path = Path(model).expanduser()
        if not path.is_dir():
            raise ValueError(f"MODEL {model}: there is no such folder; give a local Hugging Face folder, or --server.")
        check_model(str(path.absolute()), "MODEL")
        if engine.chat_template is None:
            load_tokenizer(path, "MODEL")


def _sampler(server: str | None, how: Sampling, engine: Engine) -> Sampler:
    def sample(model: str, chats: Chats, file: Path, follow: Callable[[int, int], None]) -> Responses:
        if server is not None:
            return server_responses(server, model, chats, file, how, on_progress=follow)
        folder = Path(model).expanduser().absolute()
        return responses(folder, chats, file, how, engine=engine, on_progress=follow)

    return sample


def _show(evaluation: Evaluation, base: str | None, folder: Path, console: Console) -> None:
    several = len(evaluation.results) > 1
    tables = [("", set_table(evaluation, base if several else None))]
    if several:
        tables.append(("over all sets", overall_table(evaluation, base)))
    text = []
    for title, (head, rows) in tables:
        shown = Table(title=title or None)
        for number, column in enumerate(head):
            shown.add_column(column, justify="left" if number < 2 else "right", overflow="fold")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        text.append(markdown(head, rows))
    for model, sets in evaluation.results.items():
        for one, result in sets.items():
            if result.slow:
                file = folder / model / f"{one}{SCORES}"
                console.print(
                    f"{model} on {one}: {result.slow} answers took math-verify too long and count as wrong ({file})",
                    soft_wrap=True,
                )
    console.print("intervals: 95 %, bootstrap over problems; differences are paired")
    write_whole(folder / "table.md", ("\n\n".join(text) + "\n").encode())
    console.print(f"table: {folder / 'table.md'}", soft_wrap=True)
