"""The real model's table: arms with equal tuning, three seeds each, and a control that must stand still.

    python -m experiments.real_model.arms DATA... [--only grpo-lr1e-05-seed100] [--commit] [--report-only]

Each arm is tried at two learning rates on seed 100, and the better of them (sampled reward of the last five steps, on
training problems) is used for the seeds 0, 1 and 2. A run that is in results.json is not made again; the first that is
missing is made, then the next. `--commit` commits results.json and the pages after each run.
"""

import json
import re
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.recorded import commit, paired_gain, read, record, save
from fgrpo_plugin.realmodel.model import NAME
from fgrpo_plugin.realmodel.options import RealModelOptions
from fgrpo_plugin.realmodel.run import MAX_TOKENS, arm_name, run_realmodel

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
STEPS = 8
TUNING_SEED, SEEDS = 100, (0, 1, 2)
LAST = 5


@dataclass(frozen=True)
class Arm:
    """One algorithm, as `fgrpo realmodel` is given it, and the two learning rates that it is tried at."""

    title: str
    algo: str
    divergence: str | None
    rates: tuple[float, float]


NEEDED = (
    Arm("GRPO, no KL", "grpo", None, (1e-4, 3e-4)),
    Arm("f-GRPO, pearson", "f_grpo", "pearson", (1e-4, 3e-4)),
)
LATER = (
    Arm("GRPO, KL 0.001", "grpo_kl", None, (1e-4, 3e-4)),
    Arm("f-GRPO, jensen_shannon", "f_grpo", "jensen_shannon", (1e-4, 3e-4)),
    Arm("f-GRPO, pearson, preset released", "released", "pearson", (1e-4, 3e-4)),
)
CONTROL = Arm("control: learning rate 0", "f_grpo", "pearson", (0.0, 0.0))


def options(arm: Arm, rate: float, seed: int, folder: Path, data: tuple[Path, ...]) -> RealModelOptions:
    """A run of an arm."""
    return RealModelOptions(
        folder=folder,
        algo=arm.algo,
        divergence=arm.divergence,
        data=data,
        steps=STEPS,
        seed=seed,
        learning_rate=rate,
    )


def learned(result: Mapping[str, Any]) -> float:
    """What tuning looks at: the sampled reward of the last steps, on training problems."""
    return statistics.fmean(result["rewards"][-LAST:])


def best_rate(arm: Arm, results: Mapping[str, Any]) -> float | None:
    """The better learning rate of an arm, once both have been tried."""
    tried = {rate: results.get(_name(arm, rate, TUNING_SEED)) for rate in arm.rates}
    if not all(tried.values()):
        return None
    return max(arm.rates, key=lambda rate: learned(tried[rate]))  # type: ignore[arg-type]


def _name(arm: Arm, rate: float, seed: int) -> str:
    return arm_name(options(arm, rate, seed, Path("."), ()))


def wanted(results: Mapping[str, Any]) -> Iterator[tuple[Arm, float, int]]:
    """Runs that are missing and can be made now, in the order in which they are made."""
    for arms in (NEEDED, (CONTROL,), LATER):
        runs = [(arm, rate, TUNING_SEED) for arm in arms if arm is not CONTROL for rate in arm.rates]
        for arm in arms:
            rate = 0.0 if arm is CONTROL else best_rate(arm, results)
            if rate is not None:
                runs += [(arm, rate, seed) for seed in (SEEDS[:1] if arm is CONTROL else SEEDS)]
        missing = [run for run in runs if _name(*run) not in results]
        yield from missing
        if missing:
            return


SHARED = ("before.jsonl", "screened.jsonl")
"""Responses before training, which every arm has in common: kept here, so that runs made elsewhere have the same prompts."""


def share(folder: Path, *, back: bool) -> None:
    """Copy the common responses to a new folder of runs, or from the first of them (`back`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        source, target = (folder / name, HERE / name) if back else (HERE / name, folder / name)
        if source.is_file() and not target.is_file():
            shutil.copyfile(source, target)


def main(
    data: Annotated[list[Path] | None, typer.Argument(help="As for fgrpo realmodel --data.")] = None,
    folder: Annotated[Path, typer.Option(help="Of the runs.")] = Path("runs/realmodel"),
    only: Annotated[str, typer.Option(help="This run alone, by the name of its folder.")] = "",
    most: Annotated[int, typer.Option(help="Runs to make.")] = 100,
    committed: Annotated[bool, typer.Option("--commit", help="Commit each result.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only")] = False,
) -> None:
    """Make the missing runs and the pages."""
    while not report_only and most > 0:
        runs = [run for run in wanted(read(RESULTS)) if not only or _name(*run) == only]
        if not runs:
            break
        name, measured = _name(*runs[0]), commit()  # others may commit while it runs
        share(folder, back=False)
        made = run_realmodel(options(*runs[0], folder, tuple(data or ())), Console())
        share(folder, back=True)
        record(RESULTS, name, json.loads((made / "result.json").read_text()), measured)
        shutil.rmtree(made / "model", ignore_errors=True)
        most -= 1
        write_report()
        if committed:
            save(f"The real model, measured: {name}", ["experiments/real_model", "README.md"])
    write_report()


HEAD = (
    "| | learning rate | right before | right after | after - before | with a number | cut | tokens |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def row(title: str, runs: list[Mapping[str, Any]]) -> str:
    """A line of the table: means over seeds; the interval is a paired bootstrap over problems of the seeds' mean."""
    if not runs:
        return f"| {title} | not run | | | | | | |"
    gain = paired_gain(runs)

    def pair(key: str, form: str) -> str:
        old, new = (statistics.fmean(run[when][key] for run in runs) for when in ("before", "after"))
        return f"{old:{form}} -> {new:{form}}"

    before, after = (statistics.fmean(run[when]["right"] for run in runs) for when in ("before", "after"))
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return (
        f"| {title} (seed{'s' * (len(runs) > 1)} {seeds}) | {runs[0]['learning_rate']:g} | {before:.3f} | {after:.3f} | "
        f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] | {pair('parsable', '.2f')} | {pair('cut', '.2f')} | "
        f"{pair('tokens', '.0f')} |"
    )


def basis(runs: Sequence[Mapping[str, Any]]) -> str:
    """What a table's figures are of: model, problems, intervals, and where and when its runs were made."""
    if not runs:
        return "Not run."
    commits, dates, machines = ([*dict.fromkeys(run[key] for run in runs)] for key in ("commit", "date", "hardware"))
    return (
        f"{NAME}; {runs[0]['problems']} held-out problems, greedy. Intervals: 95 %, paired bootstrap over problems; one\n"
        f"that includes 0 shows no difference. Measured {' and '.join(sorted(dates))} on {' and '.join(machines)}, at\n"
        f"{', '.join(commits)}."
    )


def write_report() -> None:
    """experiments/real_model/README.md, and the table in the repository's README."""
    results = read(RESULTS)
    lines, shown_runs = [HEAD], []
    for arm in (*NEEDED, *LATER, CONTROL):
        rate = 0.0 if arm is CONTROL else best_rate(arm, results)
        names = [_name(arm, rate, seed) for seed in SEEDS] if rate is not None else []
        runs = [results[name] for name in names if name in results]
        lines.append(row(arm.title, runs))
        shown_runs += runs
    lines += ["", basis(shown_runs)]
    tuning = ["| | learning rate | sampled reward, last 5 steps | held-out after |", "| --- | --- | --- | --- |"]
    for arm in (*NEEDED, *LATER):
        for rate in arm.rates:
            found = results.get(_name(arm, rate, TUNING_SEED))
            shown = f"{learned(found):.3f} | {found['after']['right']:.3f}" if found else "not run |"
            tuning.append(f"| {arm.title} | {rate:g} | {shown} |")
    earlier = STEPS - LAST
    each = [
        f"| run | sampled reward, first {earlier} steps | last {LAST} | right, after - before | cut after | tokens after | "
        "s a step | measured |"
    ]
    each.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in sorted(results):
        found = results[name]
        first = statistics.fmean(found["rewards"][:-LAST])
        where = f"{found['commit']}, {found['date']}, {found['hardware']}"
        after, (low, high) = found["after"], found["gain_interval"]
        held_out = f"{found['gain']:+.3f} [{low:+.3f}, {high:+.3f}] | {after['cut']:.2f} | {after['tokens']:.0f}"
        each.append(
            f"| {name} | {first:.3f} | {learned(found):.3f} | {held_out} | {found['seconds_a_step']:.0f} | {where} |"
        )
    prompts = json.loads((HERE / "prompts.json").read_text()) if (HERE / "prompts.json").is_file() else {}
    chosen = ["| prompt | right | with a number | cut | tokens |", "| --- | --- | --- | --- | --- |"]
    for name, found in prompts.items():
        values = f"{found['right']:.3f} | {found['parsable']:.2f} | {found['cut']:.2f} | {found['tokens']:.0f}"
        chosen.append(f"| {name} | {values} |")
    modes = json.loads((HERE / "modes.json").read_text()) if (HERE / "modes.json").is_file() else {}
    costs = ["| | s a step | generation | reference | update | ms a token | measured |"]
    costs.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name, found in sorted(modes.items(), key=lambda item: item[1]["step"] / item[1]["tokens"]):
        parts = " | ".join(f"{found[key]:.0f}" for key in ("step", "gen", "ref", "update_actor"))
        where = f"{found['commit']}, {found['date']}, {found['hardware']}"
        costs.append(f"| {name} | {parts} | {1000 * found['step'] / found['tokens']:.1f} | {where} |")
    problems = next(iter(results.values()))["problems"] if results else 400
    table = "\n".join(lines)
    (HERE / "README.md").write_text(
        PAGE.format(
            name=NAME,
            table=table,
            tuning="\n".join(tuning),
            each="\n".join(each),
            prompts="\n".join(chosen),
            costs="\n".join(costs),
            problems=problems,
            tokens=MAX_TOKENS,
            steps=STEPS,
        )
    )
    readme = ROOT / "README.md"
    block = r"(<!-- real_model -->\n).*?(\n<!-- /real_model -->)"
    readme.write_text(re.sub(block, lambda found: found[1] + table + found[2], readme.read_text(), flags=re.DOTALL))


PAGE = """# A real model: measured

{name}, on MAWPS's single-operation word problems, through verl as it is: FSDP2, vLLM, float32,
{steps} steps of 4 prompts x 8 responses. Made by `python -m experiments.real_model.arms DATA...`; one run by `make realmodel`.

"Right": the last number anywhere in the response is the answer. {problems} held-out problems, greedy, at most {tokens}
tokens; before and after are scored alike. The interval is a paired bootstrap over problems (95 %, 10,000 resamples) of the
mean over seeds; one that includes 0 shows no difference. The reward is 1 for a right response and nothing else. Training
prompts are those of at most 256 of which some of 8 responses are right and some are wrong before training. verl draws
an adapter's first weights without a seed, so a seed does not fix a run.

{table}

## Tuning

Every arm is tried at two learning rates on seed 100; the rate with the higher sampled reward in the last 5 steps, on
training problems, is used for the seeds above. Held-out accuracy stands beside it and decides nothing.

{tuning}

## The prompt

Three fixed prompts on 100 training problems before training, greedy. The best of those at which 95 of 100 responses end
by themselves is used, before and after, by every arm.

{prompts}

## What a step costs

One step of 32 rows in each mode (`python -m experiments.real_model.modes RUN`), the first, which warms up, left out; measured beside
other work, so that differences of a tenth say little. LoRA and padding cost least and are what the group `smollm2` sets.

{costs}

## Each run

{each}
"""


if __name__ == "__main__":
    typer.run(main)
