"""``fgrpo quickstart``: a tiny warmed-up model, the stock verl on a CPU, and a table and a picture at the end."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from fgrpo_plugin.progress import Lines, progress_bars
from fgrpo_plugin.quickstart.alone import only_run
from fgrpo_plugin.quickstart.command import MODEL_LEARNING_RATE, check_overrides, host_command
from fgrpo_plugin.quickstart.inputs import (
    UserData,
    addition_inputs,
    hybrid_inputs,
    prepare_user_data,
    user_inputs,
)
from fgrpo_plugin.quickstart.options import (
    DEFAULT_STEPS,
    DIVERGENCES,
    HYBRID_STEPS,
    QuickstartError,
    QuickstartOptions,
    comes_with_the_package,
    is_users_own,
)
from fgrpo_plugin.quickstart.summary import (
    draw,
    heldout_accuracies,
    heldout_true_rewards,
    read_metrics,
    rewards,
    summarize,
)
from fgrpo_plugin.quickstart.training import PATIENCE_SECONDS, interruptible, train
from fgrpo_plugin.terminal import Terminal


def run_quickstart(options: QuickstartOptions, console: Terminal | None = None) -> Path:
    """Train, and write everything under one folder.

    Args:
        options: what to run.
        console: where progress and the table go.

    Returns:
        The run folder, with ``summary.json``, ``reward_curve.png`` and ``metrics.jsonl``.

    Raises:
        QuickstartError: bad input, or verl failed; the last words of its log are in the text.
    """
    options.check()
    try:
        user_data = None if options.data is None else prepare_user_data(options.data, options.model, options.overrides)
    except ValueError as error:
        raise QuickstartError(str(error)) from None
    with only_run() as alone:
        if not alone:
            # verl names its weight-transfer socket by Ray's job id, which every local cluster starts at 1.
            raise QuickstartError(
                "another quick start is running on this machine, and verl would send its weights to the wrong one; "
                "wait for it to end, or stop it."
            )
        return _run(options, user_data, console or Terminal())


def _run(options: QuickstartOptions, user_data: UserData | None, console: Terminal) -> Path:
    started = time.monotonic()
    hybrid = options.algo == "f_hal"
    steps = options.steps or (HYBRID_STEPS if hybrid else DEFAULT_STEPS)
    divergence = None if options.algo == "grpo" else options.divergence or DIVERGENCES[options.algo]
    name = "-".join(
        filter(None, (options.algo, divergence, f"lam{options.lam:g}" if options.lam is not None else None))
    )
    run = options.run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}-seed{options.seed}"
    run = run.absolute()
    (run / "logs").mkdir(parents=True, exist_ok=True)
    lines = Lines(console)
    console.print(f"everything goes to {run}", soft_wrap=True)
    console.file.flush()
    if is_users_own(options.model) and options.learning_rate is None:
        console.print(f"MODEL: learning rate {MODEL_LEARNING_RATE:g}; set another with ARGS='--learning-rate=...'")
    if options.overrides:
        check_overrides(run, options, steps)
    lines.say("settings checked")

    with progress_bars(console) as progress, interruptible():
        model = options.model.absolute() if options.model else _first_model(run, options, progress, lines)
        if hybrid:
            inputs = hybrid_inputs(run, model)
        else:
            inputs = addition_inputs(run, model) if user_data is None else user_inputs(run, model, user_data)
        lines.say(f"data written to {inputs.train.parent}")
        train(
            run,
            lambda ray_folder: host_command(run, options, steps, inputs, ray_folder),
            steps,
            progress,
            lines,
            patience=PATIENCE_SECONDS * (6 if is_users_own(options.model) else 1),
        )

    summary = summarize(
        run / "metrics.jsonl",
        algorithm=options.algo,
        divergence=divergence,
        seed=options.seed,
        steps=steps,
        seconds_total=time.monotonic() - started,
    )
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    rows = read_metrics(run / "metrics.jsonl")
    points = {"held-out accuracy, greedy": heldout_accuracies(rows)}
    if hybrid:
        points = {"held-out proxy": heldout_accuracies(rows), "held-out true reward": heldout_true_rewards(rows)}
    draw({name: [rewards(rows)]}, run / "reward_curve.png", f"{name}, seed {options.seed}", points)
    _report(summary, run, console)
    return run


def _first_model(run: Path, options: QuickstartOptions, progress: Progress, lines: Lines) -> Path:
    """The warmed-up model as a folder of the run: the package's own where it is the one that would be made."""
    from fgrpo_plugin.quickstart import warm_model
    from fgrpo_plugin.quickstart.model import save_model

    if comes_with_the_package(options):
        found = warm_model.packaged()
        if found is not None:
            _say(f"the warmed-up model of seed {options.seed} comes with the package; --warm-up makes it anew", lines)
            return save_model(*found, run / "model")
        _say(f"the package's model is of another warm-up than this code's; make it anew: {warm_model.COMMAND}", lines)

    bar = progress.add_task("warm-up", total=None, note="")
    lines.say("warm-up of a tiny model by supervision")

    def show(step: int, success: float) -> None:
        progress.update(bar, completed=step, note=f"success {success:.2f}")
        lines.pulse(f"warm-up: {step} steps, sampled success {success:.2f}")

    model, tokenizer, result = warm_model.make(options.seed, for_hybrid=options.algo == "f_hal", on_step=show)
    progress.update(bar, total=result.steps, completed=result.steps)
    lines.say(f"model made: {result.steps} steps of warm-up, sampled success {result.sampled_success:.2f}")
    return save_model(model, tokenizer, run / "model")


def _say(text: str, lines: Lines) -> None:
    """On a terminal too, where `Lines` leaves the word to the bars."""
    if lines.plain:
        lines.say(text)
    else:
        lines.console.print(text, soft_wrap=True)


def _report(summary: dict[str, Any], run: Path, console: Terminal) -> None:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    table = Table(title=f"{summary['algorithm']} {summary['divergence'] or ''} seed {summary['seed']}", min_width=60)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("sampled reward, 10 steps", shown(summary["reward_first10"]), shown(summary["reward_last10"]))
    heldout = "held-out proxy, sampled" if "true_reward_before" in summary else "held-out accuracy, greedy"
    table.add_row(heldout, shown(summary["heldout_accuracy_before"]), shown(summary["heldout_accuracy_after"]))
    if "true_reward_before" in summary:
        before, after = summary["true_reward_before"], summary["true_reward_after"]
        table.add_row("held-out true reward, sampled", shown(before), shown(after))
    console.print(table)
    total, step = summary["seconds_total"], summary["seconds_per_step_median"]
    console.print(f"{summary['steps']} steps in {total:.0f} s, {step:.2f} s a step")
    console.print(f"curve: {run / 'reward_curve.png'}")
