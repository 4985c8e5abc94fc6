"""A flawed reward against preferences, on a real model: f-HAL at several lambdas, and GRPO.

    python -m experiments.real_hybrid.arms [--only f_hal-lam0-lr0.0003-seed100] [--commit] [--report-only]

Each arm is tried at two learning rates on seed 100; the rate with the higher sampled reward of the last five steps is
used for the seeds 0, 1 and 2, whatever it does to accuracy: a user of the flawed reward would see no more. A run that
is in results.json is not made again.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.real_hybrid.page import STEPS, learned, write_page
from experiments.real_hybrid.reward import compute_score
from experiments.real_hybrid.task import chat, counted, preferences, problems
from experiments.recorded import commit, read, record, save
from fgrpo_plugin.eval.sampling import Sampling, responses
from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.export.exporting import export_run
from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.progress import Lines, follower, progress_bars
from fgrpo_plugin.quickstart.alone import only_run
from fgrpo_plugin.quickstart.command import quoted
from fgrpo_plugin.quickstart.summary import read_metrics, rewards
from fgrpo_plugin.quickstart.task import write_parquet
from fgrpo_plugin.quickstart.training import PATIENCE_SECONDS, interruptible, train
from fgrpo_plugin.realmodel.model import smollm2
from fgrpo_plugin.realmodel.problems import Problem
from fgrpo_plugin.terminal import Terminal

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
TUNING_SEED, SEEDS = 100, (0, 1, 2)
RATES = (3e-4, 1e-3)
HELD_OUT, ON_POLICY, OFF_POLICY = 400, 192, 384
"""Problems that are evaluated, that rewards are given on, and that preferences are made of; none is in two places."""
PROMPTS, SAMPLES, TEMPERATURE, OF_OTHERS = 8, 8, 0.7, 2
"""Of a step; of a training problem, as it is sampled in training; of one that preferences are made of."""
MAX_PROMPT, MAX_TOKENS = 64, 32


@dataclass(frozen=True)
class Arm:
    """GRPO, or f-HAL at a lambda."""

    title: str
    lam: float | None

    def name(self, rate: float, seed: int) -> str:
        """The folder of a run."""
        algorithm = "grpo" if self.lam is None else f"f_hal-lam{self.lam:g}"
        return f"{algorithm}-lr{rate:g}-seed{seed}"


NEEDED = (Arm("f-HAL, lambda 0 (f-GRPO: the reward alone)", 0.0), Arm("f-HAL, lambda 0.5", 0.5))
LATER = (Arm("f-HAL, lambda 0.25", 0.25), Arm("GRPO, no KL (the reward alone)", None))


def best_rate(arm: Arm, results: Mapping[str, Any]) -> float | None:
    """The better learning rate of an arm, once both have been tried."""
    tried = {rate: results.get(arm.name(rate, TUNING_SEED)) for rate in RATES}
    if not all(tried.values()):
        return None
    return max(RATES, key=lambda rate: learned(tried[rate]))  # type: ignore[arg-type]


def wanted(results: Mapping[str, Any]) -> Iterator[tuple[Arm, float, int]]:
    """Runs that are missing and can be made now, in the order in which they are made."""
    for arms in (NEEDED, LATER):
        runs = [(arm, rate, TUNING_SEED) for arm in arms for rate in RATES]
        for seed in SEEDS:  # a seed of every arm before the next one
            runs += [(arm, rate, seed) for arm in arms if (rate := best_rate(arm, results)) is not None]
        missing = [run for run in runs if run[0].name(*run[1:]) not in results]
        yield from missing
        if missing:
            return


@dataclass(frozen=True)
class Inputs:
    """What every arm has in common."""

    model: Path
    train: Path
    preferences: Path
    held_out: dict[str, Problem]
    before: dict[str, list[dict[str, Any]]]


def prepare(folder: Path, follow: Any, say: Any) -> Inputs:
    """Model, prompts whose responses earn different rewards, pairs of other prompts, and responses before training."""
    sums = {str(number): sum_ for number, sum_ in enumerate(problems(HELD_OUT + ON_POLICY + OFF_POLICY))}
    keys = list(sums)
    last, rewarded, others = (
        {key: sums[key] for key in part}
        for part in (keys[:HELD_OUT], keys[HELD_OUT : HELD_OUT + ON_POLICY], keys[HELD_OUT + ON_POLICY :])
    )
    model = smollm2(folder / "model")

    def ask(chosen: Mapping[str, Problem], name: str, how: Sampling, told: str) -> Any:
        chats = {key: chat(problem) for key, problem in chosen.items()}
        return responses(model, chats, folder / f"{name}.jsonl", how, on_progress=follow(told))

    before = ask(last, "before", Sampling(max_tokens=MAX_TOKENS), "held-out problems before training")
    how = Sampling(SAMPLES, TEMPERATURE, max_tokens=MAX_TOKENS)
    screened = ask(rewarded, "screened", how, "screening training problems")
    how = replace(how, samples=OF_OTHERS)
    pairs = preferences(others, ask(others, "others", how, "responses for preferences"))
    rows = []
    for key, problem in rewarded.items():
        earned = {compute_score("", one["text"], problem.answer) for one in screened[key]}
        if len(earned) > 1:
            rows.append(
                {
                    "data_source": "sums",
                    "prompt": chat(problem),
                    "reward_model": {"style": "rule", "ground_truth": problem.answer},
                    "extra_info": {"index": key},
                }
            )
    file = folder / "preferences.jsonl"
    write_whole(file, "".join(json.dumps(pair) + "\n" for pair in pairs).encode())
    train_file = write_parquet(rows, folder / "train.parquet")
    say(f"{len(rows)} prompts are rewarded; {len(pairs)} pairs of other prompts; {len(last)} problems held out")
    return Inputs(model, train_file, file, last, before)


def verl_command(arm: Arm, rate: float, seed: int, run: Path, inputs: Inputs, ray: Path) -> list[str]:
    """The words of verl's command."""
    f_divergence = "actor_rollout_ref.actor.policy_loss.f_divergence"
    words = [
        "+fgrpo=smollm2" if arm.lam is None else "+fgrpo=[smollm2,f_hal]",
        f"data.train_files={quoted(inputs.train)}",
        f"data.val_files={quoted(inputs.train)}",
        f"data.seed={seed}",
        f"data.train_batch_size={PROMPTS}",
        f"data.max_prompt_length={MAX_PROMPT}",
        f"data.max_response_length={MAX_TOKENS}",
        f"actor_rollout_ref.rollout.max_model_len={MAX_PROMPT + MAX_TOKENS}",
        f"actor_rollout_ref.model.path={quoted(inputs.model)}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.rollout.temperature={TEMPERATURE}",
        f"actor_rollout_ref.actor.optim.lr={rate}",
        # Its coefficient is 0: for the same measure of the distance from the reference in every arm.
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.kl_loss_coef=0",
        f"reward.custom_reward_function.path={quoted(HERE / 'reward.py')}",
        f"trainer.rollout_data_dir={quoted(run / 'rollouts')}",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.default_local_dir={quoted(run / 'checkpoints')}",
        f"hydra.run.dir={quoted(run / 'logs' / 'hydra')}",
        f"+ray_kwargs.ray_init._temp_dir={quoted(ray)}",
    ]
    if arm.lam is None:
        words.append("algorithm.adv_estimator=grpo")
    else:
        words += [f"++{f_divergence}.divergence=jensen_shannon", f"{f_divergence}.lam={arm.lam}"]
        words += [f"data.preference.files=[{quoted(inputs.preferences)}]", "data.preference.keep_pairs=true"]
    return [sys.executable, "-m", "verl.trainer.main_ppo", *words]


def make(arm: Arm, rate: float, seed: int, folder: Path, console: Terminal) -> dict[str, Any]:
    """One run, from what is missing of its inputs to its result."""
    run = folder / arm.name(rate, seed)
    lines = Lines(console)
    with progress_bars(console) as progress, interruptible(), only_run() as alone:
        if not alone:
            raise typer.BadParameter("another run is under way on this machine")
        follow = follower(progress, lines)
        inputs = prepare(folder, follow, lines.say)
        saved = run / "checkpoints" / "latest_checkpointed_iteration.txt"
        if not saved.is_file() or saved.read_text().strip() != str(STEPS):
            shutil.rmtree(run, ignore_errors=True)  # eight steps are made in one go
            train(
                run,
                lambda ray: verl_command(arm, rate, seed, run, inputs, ray),
                STEPS,
                progress,
                lines,
                patience=PATIENCE_SECONDS * 6,
                threads=2,
            )
        if not (run / "model" / "config.json").is_file():
            export_run(run / "checkpoints", run / "model", dtype="float32", say=lines.say)
        chats = {key: chat(problem) for key, problem in inputs.held_out.items()}
        how, told = Sampling(max_tokens=MAX_TOKENS), "held-out problems after training"
        after = responses(run / "model", chats, run / "after.jsonl", how, on_progress=follow(told))
    made = result(run, inputs.held_out, inputs.before, after)
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    return made | {"lam": arm.lam, "learning_rate": rate, "seed": seed}


KEPT = {
    "kl": "actor/kl_loss",
    "slope_share": "actor/f_divergence/on_policy_slope_share",
    "preference_accuracy": "actor/f_divergence/preference_accuracy",
    "seconds": "timing_s/step",
}
"""What is kept of each step's metrics, where it is logged."""


def result(run: Path, held_out: Mapping[str, Problem], before: Any, after: Any) -> dict[str, Any]:
    """What is kept of a run: held-out responses scored, and every step's rewards, forms and distances."""
    rows = [row["data"] for row in read_metrics(run / "metrics.jsonl") if row["step"] > 0]
    right = {
        when: "".join(str(int(is_right(given[key][0]["text"], held_out[key].answer))) for key in held_out)
        for when, given in (("before", before), ("after", after))
    }
    sampled = []
    for step in range(1, STEPS + 1):
        dumped = [json.loads(line) for line in (run / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
        problems = {str(number): Problem(row["input"], row["gts"]) for number, row in enumerate(dumped)}
        given = {str(i): [{"text": row["output"], "ended": True, "tokens": 0}] for i, row in enumerate(dumped)}
        found = counted(problems, given)
        sampled.append([round(found["right"], 4), round(found["bare"], 4)])
    steps = {name: [row[metric] for row in rows] for name, metric in KEPT.items() if rows and metric in rows[-1]}
    return {
        "problems": len(held_out),
        "before": counted(held_out, before),
        "after": counted(held_out, after),
        "right": right,
        "rewards": rewards([{"data": row} for row in rows]),
        "sampled_right_and_bare": sampled,
        **steps,
        "seconds_a_step": statistics.median(steps["seconds"]),
    }


def main(
    folder: Annotated[Path, typer.Option(help="Of the runs.")] = Path("runs/real_hybrid"),
    only: Annotated[str, typer.Option(help="This run alone, by the name of its folder.")] = "",
    most: Annotated[int, typer.Option(help="Runs to make.")] = 100,
    committed: Annotated[bool, typer.Option("--commit", help="Commit each result.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only")] = False,
) -> None:
    """Make the missing runs, and the page."""
    console = Terminal()
    while not report_only and most > 0:
        runs = list(wanted(read(RESULTS)))
        if only:
            every = [(arm, rate, seed) for arm in (*NEEDED, *LATER) for rate in RATES for seed in (TUNING_SEED, *SEEDS)]
            runs = [run for run in every if run[0].name(*run[1:]) == only and only not in read(RESULTS)]
        if not runs:
            break
        name, measured = runs[0][0].name(*runs[0][1:]), commit()
        console.print(f"{name}: {len(runs)} runs are missing")
        record(RESULTS, name, make(*runs[0], folder.absolute(), console), measured)
        write_page(read(RESULTS), HERE)
        if committed:
            save(f"A flawed reward against preferences, measured: {name}", ["experiments/real_hybrid"])
        most -= 1
    write_page(read(RESULTS), HERE)


if __name__ == "__main__":
    typer.run(main)
