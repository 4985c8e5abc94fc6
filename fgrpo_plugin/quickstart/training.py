"""One run of verl, followed to its end: progress, silence, and what it ended with."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import Progress

from fgrpo_plugin.foreign_text import without_private
from fgrpo_plugin.leftovers import watch_for
from fgrpo_plugin.progress import Lines
from fgrpo_plugin.quickstart.alone import cleaned_up
from fgrpo_plugin.quickstart.command import host_environment
from fgrpo_plugin.quickstart.news import HostNews
from fgrpo_plugin.quickstart.options import QuickstartError
from fgrpo_plugin.quickstart.summary import REWARD

PATIENCE_SECONDS = 600.0
"""Without a first line of metrics for so long, verl is taken for dead, and without a further one a warning is given; a
model that is not tiny has six times it."""


def train(
    run: Path,
    command: Callable[[Path], list[str]],
    steps: int,
    progress: Progress,
    lines: Lines,
    *,
    patience: float = PATIENCE_SECONDS,
    threads: int | None = None,
) -> None:
    """Run verl, and end everything that it started however it ends.

    Args:
        run: folder of metrics, logs and checkpoints.
        command: Ray's temporary folder -> the words of the command.
        steps: of training.
        progress: has a bar added.
        lines: plain lines where there is no terminal.
        patience: seconds without a first finished step after which verl is taken for dead; a later step that takes
            longer is said, again at twice the time.
        threads: of each process; None leaves the environment's, or one.

    Raises:
        QuickstartError: verl failed, fell silent, or ended early; its last words are in the text.
    """
    run_id = uuid.uuid4().hex
    ray_folder = Path(tempfile.mkdtemp(prefix="fgrpo-"))  # short: Ray's socket paths must stay below 107 characters
    log = run / "logs" / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = command(ray_folder)
    environment = host_environment(run, run_id)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    watch_for(os.getpid(), run_id)  # should this command itself be killed
    with cleaned_up(run_id, ray_folder), log.open("w") as output:
        output.write(" ".join(map(without_private, words)) + "\n")
        output.flush()
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a Ctrl-C comes to us alone, and the run is then ended in order
        )
        news = HostNews(run / "metrics.jsonl", log, run / "checkpoints", steps, time.monotonic)
        _follow(process, news, progress, patience, lines)
    lines.say("verl has ended, and everything that it started")


def _follow(process: subprocess.Popen, news: HostNews, progress: Progress, patience: float, lines: Lines) -> None:
    """Show verl's progress until it ends."""
    bar = progress.add_task("starting Ray, vLLM and the engines", total=None, note="")
    last_news, seen, steps, warned = time.monotonic(), -1, news.steps, patience
    while True:
        code = process.poll()
        for line in news.lines():
            lines.say(line)
        rows = news.rows
        if rows and rows[-1]["step"] != seen:
            seen, last_news, warned = rows[-1]["step"], time.monotonic(), patience
            reward = rows[-1]["data"].get(REWARD)
            shown = "" if reward is None else f"reward {reward:.2f}"
            progress.update(bar, description="training", total=steps, completed=seen, note=shown)
        lines.pulse(news.under_way())
        if code is not None:
            break
        if news.out_of_memory:
            raise QuickstartError(
                "Ray has ended workers of the run because the machine's memory is full; end what else runs, or lower "
                f"ppo_max_token_len_per_gpu and rollout.n; its log is {news.log}."
            )
        if seen < 1 and time.monotonic() - last_news > patience:
            raise QuickstartError(f"verl has finished no step for {patience:.0f} s; its log is {news.log}.")
        if time.monotonic() - last_news > warned:  # a part that has died ends verl by itself
            lines.say(f"step {seen + 1} has taken {warned:.0f} s so far; it goes on, and Ctrl-C ends it ({news.log})")
            warned *= 2
        time.sleep(0.5)
    if code != 0 or seen < steps:
        why = _why(news.log)
        raise QuickstartError(f"verl ended with exit code {code} after step {max(seen, 0)} of {steps}: {why}")


def _why(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Set the environment variable HYDRA_FULL_ERROR")]
    ours = [line for line in lines if line.startswith("fgrpo-plugin: ")]
    if lines and ours and lines[-1] == ours[-1]:
        return lines[-1]
    errors = [line for line in lines if "Error" in line and "UserWarning" not in line and "autoscaler" not in line]
    return f"{(errors or lines or ['no output'])[-1][:400]} (log: {log})"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a run in the same orderly way as Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
