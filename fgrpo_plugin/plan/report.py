"""A plan as tables, or as one JSON object."""

import shlex
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from fgrpo_plugin.plan.advice import Advice, advise, shortfall
from fgrpo_plugin.plan.configuration import overridden, overrides
from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.memory import Phase, host_bytes, phases
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun
from fgrpo_plugin.plan.roofline import StepTime, step_time


@dataclass(frozen=True)
class Plan:
    """Everything that ``fgrpo plan`` says."""

    run: PlannedRun
    assumed: Assumptions
    phases: list[Phase]
    time: StepTime
    advice: Advice | None
    """None where the run fits."""
    notes: list[str]
    command: list[str]
    """Overrides of the recipe that it was started from, with the advice; empty without a recipe."""

    @property
    def fits(self) -> bool:
        """Whether the run fits as it is."""
        return all(phase.fits for phase in self.phases)


def make_plan(run: PlannedRun, assumed: Assumptions, *, recipe: list[str] | None = None, notes: list[str]) -> Plan:
    """Evaluate a run, with advice if it does not fit.

    Args:
        run: what is planned.
        assumed: efficiencies and overheads.
        recipe: overrides of ``main_ppo`` that it comes from.
        notes: what is not modelled.
    """
    found = phases(run, assumed)
    advice = None if all(phase.fits for phase in found) else advise(run, assumed)
    command = list(recipe or [])
    if advice is not None and advice.fits and recipe:
        command = overridden(command, overrides(advice.changes, run.engine))
    return Plan(run, assumed, found, step_time(run, assumed), advice, notes, command)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan in plain types; bytes and seconds."""
    found: dict[str, Any] = {
        "model": {"name": plan.run.model.name, "parameters": plan.run.model.parameters},
        "gpu": plan.run.gpu.described(),
        "gpus": plan.run.all_gpus,
        "assumptions": asdict(plan.assumed),
        "fits": plan.fits,
        "phases": [
            {"name": phase.name, "bytes": phase.parts, "total": phase.total, "fits": phase.fits}
            for phase in plan.phases
        ],
        "host_bytes_per_node": host_bytes(plan.run) * plan.run.gpus_per_node,
        "step_seconds": plan.time.total,
        "seconds": plan.time.phases,
        "tokens_per_second": plan.time.tokens / plan.time.total,
        "update_mfu": plan.time.utilization,
        "notes": plan.notes,
        "command": _command(plan.command) if plan.command else None,
    }
    if plan.advice is not None:
        engine = plan.run.engine
        found["advice"] = {
            "fits": plan.advice.fits,
            "remains": shortfall(plan.advice.run, plan.assumed),
            "overrides": overrides(plan.advice.changes, engine),
            "tried": [
                {"overrides": overrides(trial.changes, engine), "missing_bytes": trial.excess, "kept": trial.kept}
                for trial in plan.advice.tried
            ],
        }
    return found


def print_plan(plan: Plan, console: Console) -> None:
    """Tables of memory and time, then what to change, then the command."""
    run = plan.run
    console.print(_headline(run), highlight=False)
    console.print(_memory_table(plan.phases, run))
    if host := host_bytes(run):
        console.print(f"host memory for each node: {host * run.gpus_per_node / GIB:.0f} GiB of offloaded states")
    console.print(_time_table(plan.time))
    rate = plan.time.tokens / plan.time.total
    console.print(
        f"step {plan.time.total:.3g} s: {rate:,.0f} tokens/s, {rate / run.all_gpus:,.0f} a GPU; "
        f"model FLOPs utilisation of the update {plan.time.utilization:.0%}",
        highlight=False,
    )
    console.print(
        "A prediction: roofline with assumed efficiencies (docs/plan.md); reward functions, checkpoints and validation "
        "are not in it.",
        style="dim",
    )
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False)
    if plan.advice is not None:
        _print_advice(plan, plan.advice, console)
    if plan.command:
        fits = plan.fits or (plan.advice is not None and plan.advice.fits)
        console.print("\nCommand:" if fits else "\nCommand (does not fit):")
        print(_command(plan.command))
    else:
        console.print(
            "No command: options alone describe no run. Name a --recipe, or overrides of the host.", style="dim"
        )


def _headline(run: PlannedRun) -> str:
    model = run.model
    size = f"{model.parameters / 1e9:.2f}e9 parameters"
    if model.experts:
        size += f", {model.active_parameters / 1e9:.2f}e9 of them for a token"
    split = [f"{name} {getattr(run, name)}" for name in ("tp", "pp", "cp", "ep", "sp") if getattr(run, name) > 1]
    layout = ", ".join([run.engine, *split, f"data parallel {run.dp}", f"rollout tp {run.rollout_tp}"])
    lora = f", LoRA rank {run.lora_rank}" if run.lora_rank else ""
    gpus = f"{run.nodes} x {run.gpus_per_node} {run.gpu.name} ({run.gpu.memory_gib:g} GiB)"
    if run.rollout_gpus:
        gpus += f" and {run.rollout_gpus} that generate"
    rows = f"{run.prompts} prompts x {run.group} answers" if run.generates else "preference rows alone"
    if run.joined_rows:
        rows += f", {run.joined_rows} preference rows an optimiser step"
    lengths = f"up to {run.prompt_length}+{run.response_length} tokens"
    return f"{model.name}: {size}{lora}\n{gpus}; {layout}\n{rows}; {lengths}"


def _memory_table(found: list[Phase], run: PlannedRun) -> Table:
    table = Table(title="memory of one GPU, GiB")
    table.add_column("part")
    for phase in found:
        table.add_column(phase.name, justify="right")
    for part in found[0].parts:
        values = [phase.parts[part] for phase in found]
        if any(values):
            table.add_row(part, *(f"{value / GIB:.2f}" if value else "" for value in values))
    table.add_section()
    table.add_row("total", *(f"{phase.total / GIB:.2f}" for phase in found))
    table.add_row("fits", *("yes" if phase.fits else "NO" for phase in found))
    return table


def _time_table(time: StepTime) -> Table:
    table = Table(title="time of one step, predicted")
    table.add_column("phase")
    table.add_column("s", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in time.phases.items():
        label = f"{name}, at least" if name == "resharding" else name  # gathering and copying alone
        table.add_row(label, f"{seconds:.3g}", f"{seconds / time.total:.0%}")
    return table


def _print_advice(plan: Plan, advice: Advice, console: Console) -> None:
    engine = plan.run.engine
    console.print("\nDoes not fit:", style="bold")
    for sentence in shortfall(plan.run, plan.assumed):
        console.print(f"  {sentence}", highlight=False)
    table = Table(title="tried in this order, each on top of those kept (under actor_rollout_ref)")
    table.add_column("change", overflow="fold")
    table.add_column("still missing, GiB", justify="right")
    table.add_column("kept")
    for _, group in groupby(advice.tried, key=lambda trial: list(trial.changes)):
        tried = list(group)
        tried = [trial for trial in tried if trial.kept] or tried
        changes = [word.replace("actor_rollout_ref.", "") for word in overrides(tried[0].changes, engine)]
        for trial in tried[1:]:
            values = (word.split("=")[1] for word in overrides(trial.changes, engine))
            changes = [f"{word}, {value}" for word, value in zip(changes, values, strict=True)]
        left = tried[-1].excess
        table.add_row("\n".join(changes), f"{left / GIB:.1f}" if left else "fits", "yes" if tried[-1].kept else "no")
    console.print(table)
    if not advice.fits:
        console.print(
            "Nothing that was tried makes it fit: take other GPUs, more of them, or a smaller model. What remains:"
        )
        for sentence in shortfall(advice.run, plan.assumed):
            console.print(f"  {sentence}", highlight=False)
        return
    console.print("This fits (re-evaluated, and without what turned out not to be needed):")
    for override in overrides(advice.changes, engine):
        print(f"  {shlex.quote(override)}")  # never wrapped: it is to be copied
    after, host = step_time(advice.run, plan.assumed), host_bytes(advice.run) * advice.run.gpus_per_node / GIB
    console.print(
        f"then a step takes {after.total:.3g} s on {advice.run.all_gpus} GPUs, {host:.0f} GiB of host memory a node.",
        highlight=False,
    )


def _command(words: list[str]) -> str:
    lines = ["python -m verl.trainer.main_ppo", *map(shlex.quote, words)]
    return " \\\n  ".join(lines)
