"""``fgrpo realmodel``: fetch, convert, screen, train through verl, export, evaluate; what is there is kept."""

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from fgrpo_plugin.eval.sampling import Sampling, responses
from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.export.exporting import export_run
from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.host.settings.inputs import load_tokenizer
from fgrpo_plugin.intervals import bootstrap
from fgrpo_plugin.progress import Lines, follower, progress_bars
from fgrpo_plugin.quickstart.alone import only_run
from fgrpo_plugin.quickstart.command import check_command, quoted
from fgrpo_plugin.quickstart.summary import draw, read_metrics, rewards
from fgrpo_plugin.quickstart.task import write_parquet
from fgrpo_plugin.quickstart.training import PATIENCE_SECONDS, interruptible, train
from fgrpo_plugin.realmodel.kept import PROBLEMS, keep
from fgrpo_plugin.realmodel.model import NAME, smollm2
from fgrpo_plugin.realmodel.options import ARMS, RealModelError, RealModelOptions
from fgrpo_plugin.realmodel.problems import Problem, digest, read_problems, split
from fgrpo_plugin.realmodel.prompts import CHOSEN, chat, mixed, shares, verl_rows
from fgrpo_plugin.terminal import Terminal

MAX_TOKENS = 96
"""Of a response; 95 of 100 responses before training end by themselves within it."""
SCREENED, SAMPLES, TEMPERATURE = 256, 8, 0.5
"""Training problems that are tried before training, how often each, and how: as they are sampled in training."""
PROMPTS_A_STEP, MAX_PROMPT = 4, 256
"""Of a training step, and tokens of a prompt, as in conf/fgrpo/smollm2.yaml."""
LEARNING_RATE = 3e-4
EARLIER, SETTINGS = "metrics_before_resuming.jsonl", "settings.json"


def arm_name(options: RealModelOptions) -> str:
    """The folder of a run beside those of other settings."""
    divergence = options.divergence or ("" if options.algo.startswith("grpo") else "pearson")
    rate = LEARNING_RATE if options.learning_rate is None else options.learning_rate
    return "-".join(filter(None, (options.algo, divergence, f"lr{rate:g}", f"seed{options.seed}")))


def run_realmodel(options: RealModelOptions, console: Terminal | None = None) -> Path:
    """Make what is missing of a run.

    Args:
        options: what to run.
        console: where progress and the table go.

    Returns:
        The run's folder, with `result.json`, `reward_curve.png` and the exported `model`.

    Raises:
        RealModelError: bad input, or a part failed; what was done is kept, and the same command goes on.
        fgrpo_plugin.quickstart.options.QuickstartError: verl failed.
    """
    options.check()
    with only_run() as alone:
        if not alone:
            raise RealModelError("another run is under way on this machine; wait for it to end, or stop it.")
        console = console or Terminal()
        with progress_bars(console) as progress, interruptible():
            return _run(options, console, progress, Lines(console))


def _run(options: RealModelOptions, console: Terminal, progress: Progress, lines: Lines) -> Path:
    folder = options.folder.absolute()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    # What may be wrong with what was asked for is said first: all that follows takes minutes.
    problems = read_problems(options.data, say)
    training, held_out = split(problems)
    run = folder / arm_name(options)
    if options.overrides:
        check_command(verl_command(run, options, Path("model"), Path("*.parquet"), run / "ray"), run)
    _begin(folder, run, options, problems)
    say(f"everything goes to {folder}")
    model = options.model.absolute() if options.model else smollm2(folder / "model")
    lines.say(f"model: {model}")
    training = _short(training, model, say)
    say(f"{len(training)} problems to train on, {len(held_out)} held out")

    follow = follower(progress, lines)
    before = _evaluate(model, held_out, folder / "before.jsonl", follow("held-out problems before training"))
    train_file = _screen(model, training, folder, follow("screening training problems"), lines)

    done = run / "result.json"
    if not done.is_file():
        exported = run / "model"
        if not (exported / "config.json").is_file():
            if not _is_trained(run, options.steps):
                keep(run / SETTINGS, _settings(options))
                _keep_metrics(run)
                train(
                    run,
                    lambda ray: verl_command(run, options, model, train_file, ray),
                    options.steps,
                    progress,
                    lines,
                    patience=PATIENCE_SECONDS * 6,
                    threads=2,
                )
            (run / "after.jsonl").unlink(missing_ok=True)  # of an export that was removed
            export_run(run / "checkpoints", exported, dtype="float32", say=lines.say)
        after = _evaluate(exported, held_out, run / "after.jsonl", follow("held-out problems after training"))
        result = _result(run, options, held_out, before, after)
        write_whole(done, (json.dumps(result, indent=1) + "\n").encode())
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    result = json.loads(done.read_text())
    name = options.model.name if options.model else NAME
    draw({run.name: [result["rewards"]]}, run / "reward_curve.png", f"{run.name} ({name})")
    report(result, name, console)
    say(f"model: {run / 'model'}\ncurve: {run / 'reward_curve.png'}")
    return run


def _begin(folder: Path, run: Path, options: RealModelOptions, problems: Sequence[Problem]) -> None:
    """Make the folders; refuse those that were begun with other inputs or settings than asked for."""
    if not (folder / "inputs.json").is_file() and (folder / SETTINGS).is_file():
        raise RealModelError(f"RUN={folder} is one run among others; name the folder that it is in.")
    try:
        (run / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RealModelError(f"RUN={folder} cannot be written ({error.strerror}); name another folder.") from None
    inputs = {
        "MODEL": str(options.model.absolute()) if options.model else NAME,
        "DATA": [str(path.absolute()) for path in options.data],
        PROBLEMS: digest(problems),
    }
    keep(folder / "inputs.json", inputs)
    if (run / SETTINGS).is_file():  # else nothing is trained yet, and steps and overrides may still change
        keep(run / SETTINGS, _settings(options))


def _settings(options: RealModelOptions) -> dict[str, Any]:
    """Return what the name of a run's folder does not say."""
    return {"STEPS": options.steps, "--override": list(options.overrides)}


def _short(problems: Sequence[Problem], model: Path, say: Callable[[str], None]) -> list[Problem]:
    """The problems whose prompts verl does not leave out for their length."""
    tokenizer = load_tokenizer(model, "MODEL")

    def fits(problem: Problem) -> bool:
        ids = tokenizer.apply_chat_template(chat(problem, CHOSEN), add_generation_prompt=True, return_dict=True)
        return len(ids["input_ids"]) <= MAX_PROMPT

    found = [problem for problem in problems if fits(problem)]
    if len(found) < PROMPTS_A_STEP:
        raise RealModelError(
            f"DATA: {len(found)} of {len(problems)} training problems make a prompt of at most {MAX_PROMPT} tokens, "
            f"{CHOSEN} before them included, and {PROMPTS_A_STEP} are a step's; give shorter problems."
        )
    if left_out := len(problems) - len(found):
        say(f"left out: {left_out} training problems whose prompts are longer than {MAX_PROMPT} tokens")
    return found


def _named(problems: Sequence[Problem]) -> dict[str, Problem]:
    return {str(number): problem for number, problem in enumerate(problems)}


def _evaluate(
    model: Path, problems: Sequence[Problem], output: Path, on_progress: Callable[[int, int], None]
) -> dict[str, list[dict[str, Any]]]:
    """Greedy responses to the held-out problems."""
    chats = {key: chat(problem, CHOSEN) for key, problem in _named(problems).items()}
    return responses(model, chats, output, Sampling(max_tokens=MAX_TOKENS), on_progress=on_progress)


def _screen(
    model: Path, problems: Sequence[Problem], folder: Path, on_progress: Callable[[int, int], None], lines: Lines
) -> Path:
    """Write the training problems that the model solves sometimes: the others' groups have no advantage."""
    target = folder / "train.parquet"
    named = _named(problems[:SCREENED])
    if not target.is_file():
        chats = {key: chat(problem, CHOSEN) for key, problem in named.items()}
        found = responses(
            model,
            chats,
            folder / "screened.jsonl",
            Sampling(SAMPLES, TEMPERATURE, max_tokens=MAX_TOKENS),
            on_progress=on_progress,
        )
        keys = mixed(named, found)
        if len(keys) < PROMPTS_A_STEP:
            raise RealModelError(
                f"of {len(named)} training problems the model solves {len(keys)} sometimes and not always, and "
                f"{PROMPTS_A_STEP} are a step's; name easier or harder problems: DATA=..."
            )
        part = target.with_name(f".{target.name}.part")
        write_parquet(verl_rows(named, keys, CHOSEN), part).replace(target)
        lines.say(f"{len(keys)} of {len(named)} training problems have right and wrong responses; they are trained on")
    return target


def verl_command(run: Path, options: RealModelOptions, model: Path, train_file: Path, ray_folder: Path) -> list[str]:
    """The words of verl's command; what does not depend on this run stands in ``conf/fgrpo/smollm2.yaml``."""
    rate = LEARNING_RATE if options.learning_rate is None else options.learning_rate
    overrides = [
        "+fgrpo=smollm2",
        *ARMS[options.algo],
        f"data.train_files={quoted(train_file)}",
        f"data.val_files={quoted(train_file)}",
        f"data.seed={options.seed}",
        f"actor_rollout_ref.model.path={quoted(model)}",
        f"actor_rollout_ref.rollout.seed={options.seed}",
        f"actor_rollout_ref.actor.optim.lr={rate}",
        f"trainer.total_training_steps={options.steps}",
        f"trainer.default_local_dir={quoted(run / 'checkpoints')}",
        f"hydra.run.dir={quoted(run / 'logs' / 'hydra')}",
        f"+ray_kwargs.ray_init._temp_dir={quoted(ray_folder)}",
    ]
    if not options.algo.startswith("grpo"):
        divergence = options.divergence or "pearson"
        overrides.append(f"++actor_rollout_ref.actor.policy_loss.f_divergence.divergence={divergence}")
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, *options.overrides]


def _is_trained(run: Path, steps: int) -> bool:
    saved = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return saved.is_file() and saved.read_text().strip() == str(steps)


def _keep_metrics(run: Path) -> None:
    """Put the metrics of a run that was stopped aside: verl begins its file anew when it resumes."""
    written = run / "metrics.jsonl"
    if written.is_file():
        with (run / EARLIER).open("a") as earlier:
            earlier.writelines(json.dumps(row) + "\n" for row in read_metrics(written))
        written.unlink()


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Every step once, as it was made last."""
    rows = {row["step"]: row for name in (EARLIER, "metrics.jsonl") for row in read_metrics(run / name)}
    return [rows[step] for step in sorted(rows)]


def _result(
    run: Path,
    options: RealModelOptions,
    problems: Sequence[Problem],
    before: Mapping[str, Sequence[Mapping[str, Any]]],
    after: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    named = _named(problems)
    right = {
        when: [int(is_right(given[key][0]["text"], named[key].answer)) for key in named]
        for when, given in (("before", before), ("after", after))
    }
    gain = [new - old for old, new in zip(right["before"], right["after"], strict=True)]
    rows = _metrics(run)
    times = [row["data"]["timing_s/step"] for row in rows if "timing_s/step" in row["data"]]
    return {
        "algorithm": options.algo,
        "divergence": None if options.algo.startswith("grpo") else options.divergence or "pearson",
        "learning_rate": LEARNING_RATE if options.learning_rate is None else options.learning_rate,
        "seed": options.seed,
        "steps": options.steps,
        "problems": len(problems),
        "before": asdict(shares(named, before)),
        "after": asdict(shares(named, after)),
        "before_interval": bootstrap(right["before"]),
        "after_interval": bootstrap(right["after"]),
        "gain": sum(gain) / len(gain),
        "gain_interval": bootstrap(gain),
        "right": {when: "".join(map(str, values)) for when, values in right.items()},
        "rewards": rewards(rows),
        "seconds_a_step": statistics.median(times) if times else None,
    }


def report(result: Mapping[str, Any], model: str, console: Terminal) -> None:
    """The table at a run's end."""
    named = " ".join(filter(None, (result["algorithm"], result["divergence"])))
    title = f"{named} seed {result['seed']}: {model}, {result['problems']} held-out problems, greedy"
    table = Table(title=title)
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")

    def share(key: str) -> tuple[str, str]:
        return f"{result['before'][key]:.3f}", f"{result['after'][key]:.3f}"

    intervals = [" [{:.3f}, {:.3f}]".format(*result[f"{when}_interval"]) for when in ("before", "after")]
    table.add_row("right", *(value + interval for value, interval in zip(share("right"), intervals, strict=True)))
    table.add_row("with a number", *share("parsable"))
    table.add_row("cut at the limit", *share("cut"))
    table.add_row("tokens", *(f"{result[when]['tokens']:.1f}" for when in ("before", "after")))
    console.print(table)
    low, high = result["gain_interval"]
    verdict = "no difference is shown" if low <= 0 <= high else "the difference is not chance"
    console.print(f"after - before: {result['gain']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}] (paired): {verdict}")
