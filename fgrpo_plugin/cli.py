"""The command line, ``fgrpo``: each command is a function here, or in the module of its subject."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fgrpo_plugin.eval import command as eval_command
from fgrpo_plugin.eval import safety_command, separation_command
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.plan.command import plan as plan_run
from fgrpo_plugin.replay import command as replay_command

app = typer.Typer(
    help="f-GRPO and f-HAL inside stock verl.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.command()
def doctor(
    ray: Annotated[bool, typer.Option(help="Start Ray and look into one of its workers (about 15 seconds).")] = True,
) -> None:
    """Say whether this environment can train with f-GRPO: one line a check, exit code 1 and the remedy if it cannot."""
    from fgrpo_plugin.doctor import examine

    if not examine(start_ray=ray):
        raise typer.Exit(1)


@app.command()
def settings() -> None:
    """Print every setting of f-GRPO and f-HAL, and what becomes of verl's own under them."""
    from fgrpo_plugin.host.settings.listing import print_settings

    print_settings()


@app.command()
def quickstart(
    algo: Annotated[
        str,
        typer.Option(help="f_grpo; grpo (verl's own) for comparison; f_hal on a flawed reward and preferences."),
    ] = "f_grpo",
    divergence: Annotated[str | None, typer.Option(help="Name of f.")] = None,
    lam: Annotated[float | None, typer.Option(help="lambda of f_hal, the preferences' weight.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data order, the warm-up and the rollouts.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder for everything the run writes.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your .parquet or .jsonl in verl's own data format.")] = None,
    model: Annotated[Path | None, typer.Option(help="Local Hugging Face causal LM in place of the tiny one.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the actor.")] = None,
    warm_up: Annotated[bool, typer.Option("--warm-up", help="Make the warmed-up model of seed 0 anew.")] = False,
    override: Annotated[list[str] | None, typer.Option(help="Further Hydra override for verl; repeatable.")] = None,
) -> None:
    """Train a tiny model with f-GRPO through the stock verl on a CPU and draw its reward curve."""
    from fgrpo_plugin.quickstart.options import QuickstartError, QuickstartOptions
    from fgrpo_plugin.quickstart.run import run_quickstart

    try:
        options = QuickstartOptions(
            algo=algo,
            divergence=divergence,
            lam=lam,
            seed=seed,
            steps=steps,
            run_dir=run_dir,
            data=data,
            model=model,
            learning_rate=learning_rate,
            warm_up=warm_up,
            overrides=tuple(override or ()),
        )
        run_quickstart(options)
    except QuickstartError as error:
        say(f"fgrpo quickstart: {error}", error=True)
        raise typer.Exit(2) from None


@app.command()
def realmodel(
    run: Annotated[Path, typer.Option(help="Folder for everything; what is there is not made again.")] = Path(
        "runs/realmodel"
    ),
    algo: Annotated[str, typer.Option(help="f_grpo, released (its preset), grpo, grpo_kl.")] = "f_grpo",
    divergence: Annotated[str | None, typer.Option(help="Name of f.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data order and the rollouts.")] = 0,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 8,
    data: Annotated[
        list[Path] | None, typer.Option(help="File or folder of problems, in place of MAWPS; repeatable.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Local Hugging Face folder in place of SmolLM2.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the actor.")] = None,
    override: Annotated[list[str] | None, typer.Option(help="Further Hydra override for verl; repeatable.")] = None,
) -> None:
    """Train a real language model on word problems on a CPU, export it, and evaluate it before and after."""
    from fgrpo_plugin.realmodel.options import RealModelOptions
    from fgrpo_plugin.realmodel.run import run_realmodel

    with _one_sentence("fgrpo realmodel"):
        run_realmodel(
            RealModelOptions(
                folder=run,
                algo=algo,
                divergence=divergence,
                model=model,
                data=tuple(data or ()),
                steps=steps,
                seed=seed,
                learning_rate=learning_rate,
                overrides=tuple(override or ()),
            )
        )


@app.command(context_settings={"ignore_unknown_options": True})  # older ones, which it rewrites
@functools.wraps(plan_run)
def plan(**options: Any) -> None:
    with _one_sentence("fgrpo plan"):
        plan_run(**options)


@app.command()
def data(
    names: Annotated[list[str], typer.Argument(help="gsm8k, svamp, mawps, limr, open_rs, math_500.")],
    output: Annotated[Path, typer.Option(help="Folder; a set is written to <output>/<name>/<split>.parquet.")] = Path(
        "~/data"
    ),
    source: Annotated[
        str | None, typer.Option(help="File, folder or dataset name in the published columns, in place of the Hub's.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="This split alone.")] = None,
) -> None:
    """Write sets of mathematical problems in verl's parquet format, with a reward of verl that scores them."""
    from fgrpo_plugin.data.math_sets import prepare
    from fgrpo_plugin.host.settings.rewards import earns_full_reward
    from fgrpo_plugin.terminal import Terminal

    console = Terminal()
    with _one_sentence("fgrpo data"):
        if source is not None and len(names) > 1:
            raise ValueError(f"--source={source} is of one set; name one.")
        for name in names:
            console.print(f"{name}: reading {source or 'the published set'}", soft_wrap=True)
            for found in prepare(name, output, earns_full_reward=earns_full_reward, source=source, split=split):
                console.print(f"{found.rows} rows to {found.file}", soft_wrap=True)
                for reason, count in found.left_out.most_common():
                    console.print(f"left out: {count} x {reason} (first: row {found.first_left_out[reason]})")


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="A run's checkpoint folder (its newest step), a global_step_N in it, or an actor.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; it appears when it is whole.")],
    step: Annotated[int | None, typer.Option(help="Which step of a run's folder.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="LoRA's adapter as PEFT's folder, not merged.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16 (default for a model), float32, as-saved (default for an adapter).")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder or name of the model that was trained, where a checkpoint lacks it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in the folder.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code, which is in its folder.")
    ] = False,
) -> None:
    """Write a checkpoint of verl as a Hugging Face folder with a model card; LoRA is merged, or written with PEFT."""
    with _one_sentence("fgrpo export", code=1):
        from fgrpo_plugin.export.exporting import export_run

        export_run(
            run,
            output,
            step=step,
            adapter=adapter,
            dtype=dtype,  # type: ignore[arg-type]  # checked there
            base_model=base_model,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            say=say,
        )


prefs = typer.Typer(help="Look at preference data, and convert them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(prefs, name="prefs")

Files = Annotated[list[str], typer.Argument(help="Files, folders or dataset names, in any format that is known.")]
Split = Annotated[str, typer.Option(help="Split of a named or saved dataset, or of a snapshot.")]
Configuration = Annotated[
    str | None, typer.Option("--config", help="Configuration of a named dataset, or folder in a folder.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(help="prompt=question: what a format reads=the file's column; a+b joins two, null leaves one out."),
]


@prefs.command()
def check(
    files: Files,
    split: Split = "train",
    config: Configuration = None,
    column: Column = None,
    model: Annotated[Path | None, typer.Option(help="Folder whose tokenizer measures and renders the rows.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="enable_thinking=false: argument of the chat template, as the run has it.")
    ] = None,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Tokens, as the run has them.")] = None,
    max_response_length: Annotated[int | None, typer.Option(min=1, help="Tokens, as the run has them.")] = None,
    on_too_long: Annotated[
        str | None, typer.Option(help="error (if nothing is named), drop or truncate, as the run has it.")
    ] = None,
    ranking_pairs: Annotated[
        int | None,
        typer.Option(min=0, help="Pairs that the model in --model ranks, where no cache has as many (100); 0: none."),
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Reference log-probs of runs, as data.preference.cache_dir.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows that are shown, and of the pairs that are ranked.")] = 0,
) -> None:
    """Say what is in preference data: format, counts, lengths, duplicates; exit code 1 if a run would refuse them.

    With --model also in how many pairs that model, as a reference, gives the chosen response the larger probability.
    """
    from fgrpo_plugin.preference.config import named_values
    from fgrpo_plugin.preference.files import read_preferences
    from fgrpo_plugin.preference.loading import RowSettings
    from fgrpo_plugin.preference.report import Measured, print_report
    from fgrpo_plugin.preference.template import stop_tokens
    from fgrpo_plugin.terminal import Terminal

    with _one_sentence("fgrpo prefs check"):
        measured = asked = None
        given: dict[str, Any] = {"--template": template, "--max-prompt-length": max_prompt_length}
        given |= {"--max-response-length": max_response_length, "--cache-dir": cache_dir}
        given |= {"--on-too-long": on_too_long, "--ranking-pairs": ranking_pairs}
        ranking_pairs = 100 if ranking_pairs is None else ranking_pairs
        if model is not None:
            limits = (max_prompt_length or sys.maxsize, max_response_length or sys.maxsize)
            arguments = named_values("--template", template)
            tokenizer = _tokenizer(model)
            measured = Measured.of(tokenizer, RowSettings(*limits, arguments, tuple(stop_tokens(model))))
            from fgrpo_plugin.preference.reference_ranking import Asked

            asked = Asked(model, ranking_pairs, seed, cache_dir, on_too_long or "error")
        elif named := [name for name, value in given.items() if value is not None and value != []]:
            raise ValueError(f"{named[0]} is of a model; name it with --model.")
        found = read_preferences(
            files, split=split, config=config, columns=_columns(column), on_bad_row="skip", said=_said("read")
        )
        report = print_report(found, Terminal(), measured=measured, seed=seed, said=_said("in tokens"))
        if measured is not None and asked is not None and report.rows is not None and ranking_pairs:
            from fgrpo_plugin.preference.ranking_report import report_ranking

            report_ranking(report.rows, measured.settings, asked, Terminal(), Terminal(stderr=True))
    if not report.usable:
        raise typer.Exit(1)


@prefs.command()
def convert(
    files: Files,
    output: Annotated[Path, typer.Option(help="The .parquet file to write.")],
    split: Split = "train",
    config: Configuration = None,
    column: Column = None,
    on_bad_row: Annotated[str, typer.Option(help="error, or skip (counted).")] = "error",
) -> None:
    """Write preference data of any format as one parquet file of rows: prompt, response, desirable, pair, source."""
    from fgrpo_plugin.preference.files import read_preferences, write_preferences
    from fgrpo_plugin.terminal import Terminal

    with _one_sentence("fgrpo prefs convert"):
        found = read_preferences(
            files, split=split, config=config, columns=_columns(column), on_bad_row=on_bad_row, said=_said("read")
        )
        write_preferences(found.rows, output)
    console = Terminal(highlight=False)
    for line in found.left_out():
        console.print(line, soft_wrap=True)
    console.print(f"{len(found.rows)} rows of {found.examples} examples to {output}", soft_wrap=True)


def _columns(given: list[str] | None) -> dict[str, Any]:
    from fgrpo_plugin.preference.config import checked_columns, named_words

    found: dict[str, Any] = {}
    for name, value in named_words("--column", given):
        found[name] = None if value == "null" else value.split("+") if "+" in value else value
    return checked_columns(found)


def _said(what: str) -> Callable[[int, Callable[[], float]], None]:
    """A line to the error output every few seconds, for data of which a million rows take minutes."""
    from fgrpo_plugin.preference.loading import SECONDS_BETWEEN_LINES

    last = time.monotonic()

    def said(rows: int, share: Callable[[], float]) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{rows} rows {what}, {share():.0%}", error=True)

    return said


@contextlib.contextmanager
def _one_sentence(command: str, code: int = 2) -> Iterator[None]:
    """Bad input ends a command with its sentence and this exit code, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        say(f"{command}: {error}", error=True)
        raise typer.Exit(code) from None


evaluation = typer.Typer(help="Evaluate models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluation, name="eval")
for _name, _command in (
    ("math", eval_command.math),
    ("safety", safety_command.safety),
    ("separation", separation_command.separate),
    ("table", eval_command.table),
    ("refusals", safety_command.refusals),
):
    evaluation.command(_name)(_one_sentence(f"fgrpo eval {_name}")(_command))
app.command("replay")(_one_sentence("fgrpo replay")(replay_command.replay))


def _tokenizer(model: Path | None) -> Any:
    if model is None:
        return None
    from fgrpo_plugin.host.settings.inputs import TOKENIZER_FILES, check_model, load_tokenizer

    if not any((model / name).is_file() for name in TOKENIZER_FILES):  # a tokenizer alone will do
        check_model(str(model.absolute()), "--model")
    return load_tokenizer(model, "--model")


if __name__ == "__main__":
    app()
