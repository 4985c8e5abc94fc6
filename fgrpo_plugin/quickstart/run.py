"""``fgrpo quickstart``: tiny model, warm-up, the stock host on a CPU, and a table and a picture at the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fgrpo_plugin.divergences import available_divergences
from fgrpo_plugin.host.settings.inputs import check_model, load_tokenizer
from fgrpo_plugin.quickstart import task
from fgrpo_plugin.quickstart.processes import MARKER, cleaned_up, only_run
from fgrpo_plugin.quickstart.summary import (
    draw,
    heldout_accuracies,
    heldout_true_rewards,
    read_metrics,
    rewards,
    summarize,
)
from fgrpo_plugin.quickstart.user_data import UserData, prepare_user_data

ALGORITHMS = ("f_grpo", "f_hal", "grpo")
DEFAULT_STEPS, HYBRID_STEPS = 50, 90
DIVERGENCES = {"f_grpo": "pearson", "f_hal": "kl"}
MAX_STEPS = 100_000
PATIENCE_SECONDS = 600.0
"""Without a new line of metrics for so long, the host is taken for dead; a model of the user's own has six times it."""
MODEL_LEARNING_RATE = 1e-6
MODEL_OVERRIDES = tuple(
    f"actor_rollout_ref.{key}=8"
    for key in (
        "actor.ppo_micro_batch_size_per_gpu",
        "ref.log_prob_micro_batch_size_per_gpu",
        "rollout.log_prob_micro_batch_size_per_gpu",
    )
)
"""For MODEL=, a model of unknown size that was pretrained: what `conf/fgrpo/quickstart.yaml` has suits the tiny one."""


class QuickstartError(ValueError):
    """The run cannot start or has failed; the text is one sentence that names the option and the remedy."""


@dataclass(frozen=True)
class QuickstartOptions:
    """What the command line can set."""

    algo: str = "f_grpo"
    divergence: str | None = None
    """Name of f; None takes pearson, and on the hybrid task of f_hal kl."""
    lam: float | None = None
    seed: int = 0
    steps: int | None = None
    run_dir: Path | None = None
    data: Path | None = None
    model: Path | None = None
    learning_rate: float | None = None
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot work, before anything is written.

        Raises:
            QuickstartError: names the option and the remedy.
        """
        if self.algo not in ALGORITHMS:
            raise QuickstartError(f"ALGO={self.algo} is not known; choose one of {', '.join(ALGORITHMS)}.")
        if self.algo == "grpo" and self.divergence is not None:
            raise QuickstartError(f"DIVERGENCE={self.divergence} means nothing to ALGO=grpo; remove one of the two.")
        if self.lam is not None and self.algo != "f_hal":
            raise QuickstartError(f"LAM={self.lam} is lambda of f-HAL; set ALGO=f_hal, or remove it.")
        if self.lam is not None and not 0 <= self.lam <= 1:
            raise QuickstartError(f"LAM={self.lam} must lie in [0, 1]; 0 is f-GRPO, 1 uses preference data alone.")
        if self.algo == "f_hal" and self.data is not None:
            raise QuickstartError(
                f"DATA={self.data} with ALGO=f_hal: the quick start has preferences for its own task alone; with data "
                "of your own use verl.trainer.main_ppo and data.preference.files."
            )
        if self.divergence == "alpha":
            raise QuickstartError(
                "DIVERGENCE=alpha needs its order, for which the quick start has no option; use verl.trainer.main_ppo "
                "with policy_loss.f_divergence.alpha."
            )
        names = [name for name in available_divergences() if name != "alpha"]
        if self.divergence is not None and self.divergence not in names:
            raise QuickstartError(f"DIVERGENCE={self.divergence} is not known; choose one of {', '.join(names)}.")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise QuickstartError(f"STEPS={self.steps} must lie between 1 and {MAX_STEPS}.")
        if self.learning_rate is not None and not 0 <= self.learning_rate < 1:
            raise QuickstartError(f"--learning-rate={self.learning_rate} must lie in [0, 1).")
        if self.seed < 0:
            raise QuickstartError(f"SEED={self.seed} must be 0 or more.")
        if self.run_dir is not None and self.run_dir.exists():
            if not self.run_dir.is_dir():
                raise QuickstartError(f"RUN={self.run_dir} is a file; name a new folder.")
            if any(self.run_dir.iterdir()):
                raise QuickstartError(f"RUN={self.run_dir} is not empty; name a new folder or remove this one.")
        if self.model is not None:
            try:
                check_model(str(self.model.absolute()), "MODEL")
                load_tokenizer(self.model, "MODEL")
            except ValueError as error:
                raise QuickstartError(str(error)) from None


@dataclass(frozen=True)
class _Inputs:
    """What the host is started on."""

    model: Path
    train: Path
    heldout: Path
    overrides: tuple[str, ...]


def run_quickstart(options: QuickstartOptions, console: Console | None = None) -> Path:
    """Train, and write everything under one folder.

    Args:
        options: what to run.
        console: where progress and the table go.

    Returns:
        The run folder, with ``summary.json``, ``reward_curve.png`` and ``metrics.jsonl``.

    Raises:
        QuickstartError: bad input, or the host failed; the last words of its log are in the text.
    """
    options.check()
    try:
        user_data = None if options.data is None else prepare_user_data(options.data, options.model, options.overrides)
    except ValueError as error:
        raise QuickstartError(str(error)) from None
    with only_run() as alone:
        if not alone:
            # The host names its weight-transfer socket by Ray's job id, which every local cluster starts at 1.
            raise QuickstartError(
                "another quick start is running on this machine, and the host would send its weights to the wrong one; "
                "wait for it to end, or stop it."
            )
        return _run(options, user_data, console or Console())


def _run(options: QuickstartOptions, user_data: UserData | None, console: Console) -> Path:
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
    console.print(f"everything goes to {run}")
    if _is_users_own(options.model) and options.learning_rate is None:
        console.print(f"MODEL: learning rate {MODEL_LEARNING_RATE:g}; set another with ARGS='--learning-rate=...'")
    if options.overrides:
        _check_overrides(run, options, steps)

    with _progress(console) as progress, _interruptible():
        model = options.model.absolute() if options.model else _warm_model(run, options.seed, progress, hybrid)
        if hybrid:
            inputs = _hybrid(run, model)
        else:
            inputs = _addition(run, model, options.seed) if user_data is None else _user(run, model, user_data)
        _train(run, options, steps, inputs, progress)

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


def _is_users_own(model: Path | None) -> bool:
    """Whether it is another model than the quick start's own from an earlier run."""
    return model is not None and "fgrpo_quickstart" not in json.loads((model / "config.json").read_text())


def _check_overrides(run: Path, options: QuickstartOptions, steps: int) -> None:
    """Compose and complete the configuration as the host will, before the warm-up: a user's key may be mistyped."""
    inputs = _Inputs(model=Path("model"), train=Path("*.parquet"), heldout=Path("*.parquet"), overrides=())
    if options.algo == "f_hal":
        inputs = _hybrid(run, Path("model"))
    words = [word for word in host_command(run, options, steps, inputs, run / "ray")[3:] if "hydra." not in word]
    program = (
        "from fgrpo_plugin.host.settings.compose import check_overrides; import sys; check_overrides(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=host_environment(run, ""), capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise QuickstartError(f"--override: {reason.removeprefix('ValueError: ')}")


def _warm_model(run: Path, seed: int, progress: Progress, for_hybrid: bool) -> Path:
    import torch

    from fgrpo_plugin.quickstart import hybrid
    from fgrpo_plugin.quickstart.model import Example, build_model, build_tokenizer, save_model, warm_up

    torch.set_num_threads(1)  # a model this small gains a third from two, and loses tenfold beside another load
    bar = progress.add_task("warm-up", total=None, reward="")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    train, _ = task.split_pairs()
    how: dict[str, Any] = {"wrong_answer": task.wrong_answer}
    if for_hybrid:
        how = {"wrong_answer": hybrid.wrong_answer, "target_success": hybrid.WARM_UP_SUCCESS}
    result = warm_up(
        model,
        tokenizer,
        [Example(pair.prompt, pair.answer) for pair in train],
        seed=seed,
        **how,
        on_step=lambda step, success: progress.update(bar, completed=step, reward=f"success {success:.2f}"),
    )
    progress.update(bar, total=result.steps, completed=result.steps)
    return save_model(model, tokenizer, run / "model")


def _addition(run: Path, model: Path, seed: int) -> _Inputs:
    train, _ = task.split_pairs()
    rows, heldout = task.verl_rows(train, "train"), task.verl_rows(task.heldout_sample(), "heldout")
    return _Inputs(
        model=model,
        train=task.write_parquet(rows, run / "data" / "train.parquet"),
        heldout=task.write_parquet(heldout, run / "data" / "heldout.parquet"),
        overrides=(
            "reward.custom_reward_function.path=pkg://fgrpo_plugin.quickstart.task",
            "reward.custom_reward_function.name=compute_score",
        ),
    )


def _hybrid(run: Path, model: Path) -> _Inputs:
    """The hybrid task: the same sums, the flawed proxy for a reward, and truthful preferences."""
    from fgrpo_plugin.quickstart import hybrid

    train, _ = task.split_pairs()
    rows, heldout = task.verl_rows(train, "train"), task.verl_rows(task.heldout_sample(), "heldout")
    preferences = hybrid.write_preference_file(run / "data" / "preferences.parquet")
    return _Inputs(
        model=model,
        train=task.write_parquet(rows, run / "data" / "train.parquet"),
        heldout=task.write_parquet(heldout, run / "data" / "heldout.parquet"),
        overrides=(
            "reward.custom_reward_function.path=pkg://fgrpo_plugin.quickstart.hybrid",
            "reward.custom_reward_function.name=proxy_reward",
            f"data.preference.files=[{preferences}]",
            f"data.preference.cache_dir={run / 'reference_cache'}",
        ),
    )


def _user(run: Path, model: Path, data: Any) -> _Inputs:
    return _Inputs(
        model=model,
        train=task.write_parquet(data.train, run / "data" / "train.parquet"),
        heldout=task.write_parquet(data.heldout, run / "data" / "heldout.parquet"),
        overrides=data.overrides,
    )


def host_command(run: Path, options: QuickstartOptions, steps: int, inputs: _Inputs, ray_folder: Path) -> list[str]:
    """The stock host's command line; what does not depend on this run stands in ``conf/fgrpo/quickstart.yaml``."""
    f_divergence = "actor_rollout_ref.actor.policy_loss.f_divergence"
    overrides = [
        f"+fgrpo={'laptop_hybrid' if options.algo == 'f_hal' else 'quickstart'}",
        f"algorithm.adv_estimator={options.algo}",
        f"data.train_files={inputs.train}",
        f"data.val_files={inputs.heldout}",
        f"data.seed={options.seed}",
        f"actor_rollout_ref.model.path={inputs.model}",
        f"actor_rollout_ref.rollout.seed={options.seed}",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={run / 'checkpoints'}",
        f"hydra.run.dir={run / 'logs' / 'hydra'}",
        f"+ray_kwargs.ray_init._temp_dir={ray_folder}",
        *inputs.overrides,
    ]
    if _is_users_own(options.model):
        overrides += [*MODEL_OVERRIDES, f"actor_rollout_ref.actor.optim.lr={MODEL_LEARNING_RATE}"]
    if options.algo == "f_grpo":
        overrides.append(f"+{f_divergence}.divergence={options.divergence or DIVERGENCES['f_grpo']}")
    if options.algo == "f_hal":
        overrides.append(f"{f_divergence}.divergence={options.divergence or DIVERGENCES['f_hal']}")
        overrides += [f"{f_divergence}.lam={options.lam}"] if options.lam is not None else []
    if options.learning_rate is not None:
        overrides.append(f"actor_rollout_ref.actor.optim.lr={options.learning_rate}")
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, *options.overrides]


def host_environment(run: Path, run_id: str) -> dict[str, str]:
    """The environment in which the host finds the CPU platform and writes its metrics as JSON lines."""
    return {
        **os.environ,
        MARKER: run_id,
        # Ray and vLLM change their processes' titles, which else overwrites the environment that holds the marker.
        "SPT_NOENV": "1",
        # A dozen processes share the cores; with a thread pool each they wait for one another in busy loops.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(run / "metrics.jsonl"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _train(run: Path, options: QuickstartOptions, steps: int, inputs: _Inputs, progress: Progress) -> None:
    run_id = uuid.uuid4().hex
    ray_folder = Path(tempfile.mkdtemp(prefix="fgrpo-"))  # short: Ray's socket paths must stay below 107 characters
    log = run / "logs" / "train.log"
    command = host_command(run, options, steps, inputs, ray_folder)
    with cleaned_up(run_id, ray_folder), log.open("w") as output:
        output.write(" ".join(command) + "\n")
        output.flush()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=host_environment(run, run_id),
            start_new_session=True,  # a Ctrl-C comes to us alone, and the run is then ended in order
        )
        patience = PATIENCE_SECONDS * (6 if _is_users_own(options.model) else 1)
        _follow(process, run / "metrics.jsonl", log, steps, progress, patience)


def _follow(
    process: subprocess.Popen, metrics: Path, log: Path, steps: int, progress: Progress, patience: float
) -> None:
    """Show the host's progress until it ends."""
    bar = progress.add_task("starting Ray, vLLM and the engines", total=None, reward="")
    last_news, seen = time.monotonic(), -1
    while True:
        code = process.poll()
        rows = read_metrics(metrics)
        if rows and rows[-1]["step"] != seen:
            seen, last_news = rows[-1]["step"], time.monotonic()
            reward = rows[-1]["data"].get("critic/score/mean")
            shown = "" if reward is None else f"reward {reward:.2f}"
            progress.update(bar, description="training", total=steps, completed=seen, reward=shown)
        if code is not None:
            break
        if time.monotonic() - last_news > patience:
            raise QuickstartError(f"the host has finished no step for {patience:.0f} s; its log is {log}.")
        time.sleep(0.5)
    if code != 0 or seen < steps:
        raise QuickstartError(f"the host ended with exit code {code} after step {max(seen, 0)} of {steps}: {_why(log)}")


def _why(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Set the environment variable HYDRA_FULL_ERROR")]
    ours = [line for line in lines if line.startswith("fgrpo-plugin: ")]
    if lines and ours and lines[-1] == ours[-1]:
        return lines[-1]
    errors = [line for line in lines if "Error" in line and "UserWarning" not in line and "autoscaler" not in line]
    return f"{(errors or lines or ['no output'])[-1][:400]} (log: {log})"


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[reward]}"), console=console)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a run in the same orderly way as Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _report(summary: dict[str, Any], run: Path, console: Console) -> None:
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
