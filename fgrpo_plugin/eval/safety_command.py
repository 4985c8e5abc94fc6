"""``fgrpo eval safety`` and ``fgrpo eval refusals``: what they take, checked before anything is sampled."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fgrpo_plugin.eval import options
from fgrpo_plugin.eval.evaluating import evaluate, named_models
from fgrpo_plugin.eval.judge import TEMPLATE, Judge
from fgrpo_plugin.eval.labelled import OURS, labelled_table, read_labelled
from fgrpo_plugin.eval.prompt_sets import read_prompts
from fgrpo_plugin.eval.refusals import LISTS
from fgrpo_plugin.eval.safety import scored_prompts
from fgrpo_plugin.eval.safety_table import read_safety, safety_table
from fgrpo_plugin.eval.sampling import Engine, Sampling
from fgrpo_plugin.progress import Lines, follower, progress_bars
from fgrpo_plugin.terminal import Terminal

DEFAULT_LIST = "xstest"
"""The list that is wrong less often on responses that people have labelled: docs/safety.md."""

Refusals = Annotated[str, typer.Option(help=f"Whose phrases tell a refusal: {', '.join(LISTS)}.")]
Ks = Annotated[list[int] | None, typer.Option("--k", help="attack success@k; repeatable; the samples if not given.")]
JudgeModel = Annotated[str | None, typer.Option("--judge", help="Folder of a judge, or its name at --judge-server.")]
JudgeServer = Annotated[
    str | None, typer.Option(help="http://host:port/v1 of the judge's server, in place of vLLM here.")
]
JudgeTemplate = Annotated[Path | None, typer.Option(help="File of the judge's question, with {prompt} and {response}.")]
JudgeGuard = Annotated[
    bool, typer.Option("--judge-guard", help="Hand the judge the conversation alone, as Llama Guard takes it.")
]
JudgeMaxTokens = Annotated[int, typer.Option(help="Of a verdict; more for a judge that thinks.")]


def safety(
    models: options.Models,
    harmful: options.Harmful = None,
    safe: options.Safe = None,
    data: options.OfBothKinds = None,
    output: options.Output = Path("evaluation"),
    samples: Annotated[int, typer.Option(help="Responses a prompt.")] = 1,
    k: Ks = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy, with one sample.")] = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    base: options.Base = None,
    refusals: Refusals = DEFAULT_LIST,
    judge: JudgeModel = None,
    judge_server: JudgeServer = None,
    judge_template: JudgeTemplate = None,
    judge_guard: JudgeGuard = False,
    judge_max_tokens: JudgeMaxTokens = 64,
    server: options.Server = None,
    dtype: options.Dtype = None,
    tensor_parallel: options.TensorParallel = 1,
    chat_template: options.ChatTemplate = None,
) -> None:
    """Sample models on harmful and on safe prompts: attack success and over-refusal with intervals, and a judge."""
    how = Sampling(samples, temperature, top_p, max_tokens, seed)
    named, engine = named_models(models), Engine(dtype, tensor_parallel, chat_template)
    options.check(named, output, k=k or (), samples=samples, limit=limit, base=base, server=server, engine=engine)
    check_list(refusals)
    judging = _judge(judge, judge_server, judge_template, judge_guard, judge_max_tokens, engine)
    sets = read_prompts(harmful=harmful or (), safe=safe or (), data=data or (), limit=limit)
    console = Terminal()
    for one in sets:
        bad = sum(prompt.harmful for prompt in one.asked.values())
        console.print(
            f"{one.name}: {bad} harmful and {len(one.asked) - bad} safe prompts x {samples} samples", soft_wrap=True
        )
        if one.repeated:
            console.print(
                f"{one.name}: {one.repeated} rows ask what an earlier row asks and are left out", soft_wrap=True
            )
    scoring = None
    if judging is not None:
        words = hashlib.sha256((judging.template or "").encode()).hexdigest()[:16]
        scoring = {
            "judge": Path(str(judge)).name,
            "server": judge_server is not None,
            "template": words,
            "max_tokens": judge_max_tokens,
        }
    settings = {"kind": "safety", "sampling": asdict(how) | {"server": server is not None}, "scoring": scoring}
    with progress_bars(console) as progress:
        follow, sample = follower(progress, Lines(console)), options.sampler(server, how, engine)
        score = partial(scored_prompts, judge=judging)
        evaluate(named, sets, output, sample, score, settings=settings, follow=follow)
    names = [one.name for one in sets]  # the folder may hold more
    text = shown(output, refusals, k, list(named), names, base or next(iter(named)), console)
    options.write_tables(text, output, console)


def refusals(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="Responses with labels; those of this package if none is given."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write the table to as well.")] = None,
    judge: JudgeModel = None,
    judge_server: JudgeServer = None,
    judge_template: JudgeTemplate = None,
    judge_guard: JudgeGuard = False,
    judge_max_tokens: JudgeMaxTokens = 64,
    dtype: options.Dtype = None,
    tensor_parallel: options.TensorParallel = 1,
) -> None:
    """Count how often the phrases of refusals, and a judge, are wrong on responses whose label is known."""
    engine = Engine(dtype, tensor_parallel)
    options.check_engine(engine)
    judging = _judge(judge, judge_server, judge_template, judge_guard, judge_max_tokens, engine)
    if judging is not None and output is None:
        raise ValueError("what --judge says is kept beside the table; name its file with --output.")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise ValueError(f"--output {output} names no file in a folder that is there.")
    rows, console = read_labelled(files or [OURS]), Terminal()
    with progress_bars(console) as progress:
        asked = None
        if judging is not None and output is not None:
            asked = judging, output.with_suffix(".judged.jsonl"), follower(progress, Lines(console))
        head, lines = labelled_table(rows, asked)
    text = options.show_table("", head, lines, console, left=1)
    if output is not None:
        output.write_text(text + "\n")


def check_list(name: str) -> None:
    """Refuse a list of phrases that is not known.

    Raises:
        ValueError: it names those that are.
    """
    if name not in LISTS:
        raise ValueError(f"--refusals {name} is not known; choose one of {', '.join(LISTS)}.")


def shown(
    folder: Path,
    refusals: str,
    k: Sequence[int] | None,
    only: Sequence[str] | None,
    sets: Sequence[str] | None,
    base: str | None,
    console: Terminal,
) -> list[str]:
    """Print the tables of safety; return them in Markdown."""
    text = []
    for kind, models in read_safety(folder, refusals, k, only, sets).items():
        title = f"{kind}, refusals by the phrases of {LISTS[refusals].source}"
        text += [title, options.show_table(title, *safety_table(models, base), console)]
    return text


def _judge(
    model: str | None, server: str | None, template: Path | None, guard: bool, max_tokens: int, engine: Engine
) -> Judge | None:
    if model is None:
        given = {"--judge-server": server, "--judge-template": template, "--judge-guard": guard or None}
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{named[0]} is of a judge; name it with --judge.")
        return None
    if guard and template is not None:
        raise ValueError("--judge-guard hands over the conversation alone; leave --judge-template out.")
    if max_tokens < 1:
        raise ValueError(f"--judge-max-tokens {max_tokens} must be 1 or more.")
    if server is None:
        options.check_folder(model, "--judge", "--judge-server")
    if template is not None and not template.is_file():
        raise ValueError(f"--judge-template {template}: there is no such file.")
    try:
        words = None if guard else TEMPLATE if template is None else template.read_text(encoding="utf-8-sig")
        own = Engine(engine.dtype, engine.tensor_parallel)  # its chat template is its own
        return Judge(partial(options.sampler(server, Sampling(max_tokens=max_tokens), own), model), words)
    except ValueError as reason:
        raise ValueError(f"--judge-template {template}: {reason}") from None
