"""A plan as tables, or as one JSON object."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.plan.advice import Advice, advise, excess, shortfall
from fgrpo_plugin.plan.alternatives import alternatives
from fgrpo_plugin.plan.configuration import overridden, overrides
from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.memory import Phase, host_bytes, node_memory, phases
from fgrpo_plugin.plan.moves import METHOD, MOST_GPUS, PRECISION, Changes
from fgrpo_plugin.plan.planned_run import NODE_GIB_A_GPU, Assumptions, PlannedRun
from fgrpo_plugin.plan.roofline import StepTime, step_time
from fgrpo_plugin.terminal import Terminal

WARNINGS = {
    PRECISION: "another precision: weights, gradients and optimiser states in bf16; small updates may be lost in them.",
    METHOD: "another method: adapters are trained (LoRA), not the weights.",
}
"""Stage of an advice -> what it changes beside memory and time."""


@dataclass(frozen=True)
class Plan:
    """Everything that ``fgrpo plan`` says."""

    run: PlannedRun
    assumed: Assumptions
    phases: list[Phase]
    at_mean: list[Phase]
    """The same phases with every row of mean length; empty where no mean is known."""
    time: StepTime
    advice: Advice | None
    """None where the run fits."""
    instead: list[str]
    """What would fit where no advice does."""
    notes: list[str]
    command: list[str]
    """Overrides of ``main_ppo``, with the advice."""

    @property
    def fits(self) -> bool:
        """Whether the run fits as it is."""
        return not excess(self.run, self.assumed)


def make_plan(
    run: PlannedRun,
    assumed: Assumptions,
    *,
    words: list[str],
    notes: list[str],
    refuses: Callable[[list[str]], str | None] | None = None,
) -> Plan:
    """Evaluate a run, with advice if it does not fit.

    Args:
        run: what is planned.
        assumed: efficiencies and overheads.
        words: overrides of ``main_ppo`` that it comes from.
        notes: what is not modelled.
        refuses: overrides -> why a run would not start with them, or None.
    """
    advice, instead = None, []
    if excess(run, assumed):

        def changed(changes: Changes) -> str | None:
            return refuses(overridden(words, overrides(changes, run.engine))) if refuses else None

        advice = advise(run, assumed, changed)
        if advice.fits:
            words = overridden(words, overrides(advice.changes, run.engine))
        else:
            instead = alternatives(run, assumed)
    at_mean = phases(run.at_mean_lengths(), assumed) if run.mean_prompt or run.mean_response else []
    return Plan(run, assumed, phases(run, assumed), at_mean, step_time(run, assumed), advice, instead, notes, words)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan in plain types; bytes and seconds."""
    run = plan.run
    found: dict[str, Any] = {
        "model": {"name": run.model.name, "parameters": run.model.parameters},
        "gpu": run.gpu.described(),
        "gpus": run.all_gpus,
        "assumptions": asdict(plan.assumed),
        "fits": plan.fits,
        "phases": [
            {"name": phase.name, "bytes": phase.parts, "total": phase.total, "fits": phase.fits}
            for phase in plan.phases
        ],
        "host_bytes_per_node": host_bytes(run) * run.gpus_per_node,
        "host_memory_per_node": node_memory(run, plan.assumed),
        "optimizer_steps": run.optimizer_steps,
        "filling_rows": run.filling_rows,
        "step_seconds": plan.time.total,
        "seconds": plan.time.phases,
        "tokens_per_second": plan.time.tokens / plan.time.total,
        "update_mfu": plan.time.utilization,
        "notes": plan.notes,
        "command": _command(plan.command),
    }
    for phase, mean in zip(found["phases"], plan.at_mean, strict=False):
        phase["total_at_mean_lengths"] = mean.total
    if plan.advice is not None:
        engine = run.engine
        found["advice"] = {
            "fits": plan.advice.fits,
            "remains": shortfall(plan.advice.run, plan.assumed),
            "overrides": overrides(plan.advice.changes, engine),
            "warnings": _warnings(plan.advice),
            "tried": [
                {
                    "overrides": overrides(trial.changes, engine),
                    "costs": trial.stage,
                    "missing_bytes": trial.excess,
                    "kept": trial.kept,
                }
                for trial in plan.advice.tried
            ],
            "refused": [{"overrides": overrides(changes, engine), "why": why} for changes, why in plan.advice.refused],
            "fits_instead": plan.instead,
        }
    return found


def _warnings(advice: Advice) -> list[str]:
    """Return what an advice changes beside memory and time."""
    stages = dict.fromkeys(
        trial.stage for trial in advice.tried if trial.kept and trial.changes.items() <= advice.changes.items()
    )
    return [WARNINGS[stage] for stage in stages if stage in WARNINGS]


def print_plan(plan: Plan, console: Terminal) -> None:
    """Tables of memory and time, then what to change, then the command."""
    run = plan.run
    console.print(_headline(run), highlight=False)
    console.print(_memory_table(plan))
    console.print(_host_memory(run, plan.assumed), highlight=False)
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
    fits = plan.fits or (plan.advice is not None and plan.advice.fits)
    console.print("\nCommand:" if fits else "\nCommand (does not fit):")
    say(_command(plan.command))


def _host_memory(run: PlannedRun, assumed: Assumptions) -> str:
    host, there = host_bytes(run) * run.gpus_per_node / GIB, node_memory(run, assumed) / GIB
    whose = "--assume node_memory_gib"
    if assumed.node_memory_gib is None:
        whose = f"assumed, {NODE_GIB_A_GPU:g} for each GPU; {whose}=... sets it"
    fits = "" if host <= there else " DOES NOT FIT"
    return f"host memory of a node: {host:.0f} GiB of {there:.0f} ({whose}){fits}"


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
    rows = f"{run.prompts} prompts x {run.group} responses" if run.generates else "preference rows alone"
    if run.joined_rows:
        rows += f", {run.joined_rows} preference rows an optimiser step"
    if run.optimizer_steps > 1 or run.filling_rows:
        rows += f", {run.optimizer_steps} optimiser step{'s' if run.optimizer_steps > 1 else ''}"
    if run.filling_rows:
        rows += f" ({run.filling_rows} rows only fill the last mini-batch)"
    lengths = f"up to {run.prompt_length}+{run.response_length} tokens"
    return f"{model.name}: {size}{lora}\n{gpus}; {layout}\n{rows}; {lengths}"


def _memory_table(plan: Plan) -> Table:
    found = plan.phases
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
    if plan.at_mean:
        table.add_row("at mean lengths", *(f"{phase.total / GIB:.2f}" for phase in plan.at_mean))
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


def _print_advice(plan: Plan, advice: Advice, console: Terminal) -> None:
    engine = plan.run.engine
    console.print("\nDoes not fit:", style="bold")
    for sentence in shortfall(plan.run, plan.assumed):
        console.print(f"  {sentence}", highlight=False)
    table = Table(title="tried in this order, each on top of those kept (under actor_rollout_ref)")
    table.add_column("change", overflow="fold")
    table.add_column("costs")
    table.add_column("missing, GiB", justify="right")
    table.add_column("kept")
    for _, group in groupby(advice.tried, key=lambda trial: (trial.stage, list(trial.changes))):
        tried = list(group)
        tried = [trial for trial in tried if trial.kept] or tried
        changes = [word.replace("actor_rollout_ref.", "") for word in overrides(tried[0].changes, engine)]
        for trial in tried[1:]:
            values = (word.split("=")[1] for word in overrides(trial.changes, engine))
            changes = [f"{word}, {value}" for word, value in zip(changes, values, strict=True)]
        left = tried[-1].excess
        missing = f"{left / GIB:.1f}" if left else "fits"
        table.add_row("\n".join(changes), tried[0].stage, missing, "yes" if tried[-1].kept else "no")
    console.print(table)
    for refused, why in advice.refused:
        console.print(f"left out: {' '.join(overrides(refused, engine))}: {why}", highlight=False)
    if not advice.fits:
        run = plan.run
        console.print(
            f"Does not fit on {run.all_gpus} x {run.gpu.name}, nor on {MOST_GPUS} times as many, whatever was tried."
        )
        console.print("What remains:")
        for sentence in shortfall(advice.run, plan.assumed):
            console.print(f"  {sentence}", highlight=False)
        if plan.instead:
            console.print("With the same changes would fit:")
        for sentence in plan.instead:
            console.print(f"  {sentence}", highlight=False)
        return
    console.print("This fits (re-evaluated, and without what turned out not to be needed):")
    for override in overrides(advice.changes, engine):
        say(f"  {shlex.quote(override)}")  # never wrapped: it is to be copied
    for warning in _warnings(advice):
        console.print(f"  {warning}", highlight=False)
    after, host = step_time(advice.run, plan.assumed), host_bytes(advice.run) * advice.run.gpus_per_node / GIB
    gpus = f"{advice.run.all_gpus} GPU{'s' if advice.run.all_gpus > 1 else ''}"
    console.print(
        f"then a step takes {after.total:.3g} s on {gpus}, {host:.0f} GiB of host memory a node.", highlight=False
    )


def _command(words: list[str]) -> str:
    lines = ["python -m verl.trainer.main_ppo", *map(shlex.quote, words)]
    return " \\\n  ".join(lines)
