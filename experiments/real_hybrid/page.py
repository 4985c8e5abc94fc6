"""The page and the picture of what was measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.real_hybrid.task import LARGEST
from experiments.recorded import paired_gain
from fgrpo_plugin.realmodel.model import NAME

STEPS, LAST = 8, 5
HEAD = (
    "| | learning rate | right before | right after | after - before | only a number, before -> after | "
    "KL to the reference, last step | on-policy share of the slopes |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)

Results = Mapping[str, Mapping[str, Any]]


def learned(result: Mapping[str, Any]) -> float:
    """What tuning looks at: the sampled reward of the last steps."""
    return statistics.fmean(result["rewards"][-LAST:])


def row(title: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """A line of the table: means over seeds; the interval is a paired bootstrap over problems of the seeds' mean."""
    if not runs:
        return f"| {title} | not run | | | | | | |"
    gain = paired_gain(runs)
    before, after = (statistics.fmean(run[when]["right"] for run in runs) for when in ("before", "after"))
    bare = " -> ".join(f"{statistics.fmean(run[when]['bare'] for run in runs):.2f}" for when in ("before", "after"))
    distance = statistics.fmean(run["kl"][-1] for run in runs)
    shares = [statistics.fmean(run["slope_share"]) for run in runs if run.get("slope_share")]
    share = f"{statistics.fmean(shares):.2f}" if shares else ""
    seeds = ", ".join(str(run["seed"]) for run in runs)
    named = f"{title} (seed{'s' * (len(runs) > 1)} {seeds})"
    return (
        f"| {named} | {runs[0]['learning_rate']:g} | {before:.3f} | {after:.3f} | "
        f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] | {bare} | {distance:.3f} | {share} |"
    )


def exploited(arm: Any, results: Results) -> str:
    """Count the runs of an arm, those of tuning among them, that end with the form in most responses."""
    runs = [run for run in results.values() if run["lam"] == arm.lam]
    bare = [run for run in runs if run["after"]["bare"] > 0.5]
    rights = [run["after"]["right"] for run in bare], [run["after"]["right"] for run in runs if run not in bare]
    of = [f"right {min(given):.3f} to {max(given):.3f}" if given else "" for given in rights]
    more = f" ({of[0]}; the others {of[1]})" if all(of) else f" ({of[0] or of[1]})" if runs else ""
    told = "runs end with only a number in more than half of the responses"
    return f"* {arm.title}: {len(bare)} of {len(runs)} {told}{more}."


def draw(arms: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> None:
    """Sampled accuracy, form and distance against the step: a line an arm, its seeds thin behind it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4))
    kinds = (
        ("right", lambda run: [right for right, _ in run["sampled_right_and_bare"]]),
        ("only a number", lambda run: [bare for _, bare in run["sampled_right_and_bare"]]),
        ("KL to the reference", lambda run: run["kl"]),
    )
    for axis, (label, values) in zip(axes, kinds, strict=True):
        for number, (title, runs) in enumerate(arms.items()):
            series = [values(run) for run in runs]
            for line in series:
                axis.plot(range(1, len(line) + 1), line, color=f"C{number}", alpha=0.25, linewidth=0.8)
            mean = [statistics.fmean(column) for column in zip(*series, strict=True)]
            axis.plot(range(1, len(mean) + 1), mean, color=f"C{number}", label=title)
        axis.set_title(label)
        axis.set_xlabel("training step")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("of sampled responses")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=130)
    pyplot.close(figure)


def write_page(results: Results, folder: Path) -> None:
    """README.md and curves.png, of the runs that are there."""
    from experiments.real_hybrid import arms

    shown, lines = {}, [HEAD]
    for arm in (*arms.NEEDED, *arms.LATER):
        rate = arms.best_rate(arm, results)
        names = [arm.name(rate, seed) for seed in arms.SEEDS] if rate is not None else []
        runs = [results[name] for name in names if name in results]
        lines.append(row(arm.title, runs))
        shown |= {arm.title: runs} if runs else {}
    tuning = ["| | learning rate | sampled reward, last 5 steps | held-out right after | only a number after |"]
    tuning.append("| --- | --- | --- | --- | --- |")
    for arm in (*arms.NEEDED, *arms.LATER):
        for rate in arms.RATES:
            found = results.get(arm.name(rate, arms.TUNING_SEED))
            values = (
                f"{learned(found):.3f} | {found['after']['right']:.3f} | {found['after']['bare']:.2f}"
                if found
                else "not run | |"
            )
            tuning.append(f"| {arm.title} | {rate:g} | {values} |")
    each = ["| run | right, before -> after | only a number | cut | tokens | s a step | measured |"]
    each.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name in sorted(results):
        found = results[name]
        pairs = [
            f"{found['before'][key]:{form}} -> {found['after'][key]:{form}}"
            for key, form in (("right", ".3f"), ("bare", ".2f"), ("cut", ".2f"), ("tokens", ".0f"))
        ]
        where = f"{found['commit']}, {found['date']}, {found['hardware']}"
        each.append(f"| {name} | {' | '.join(pairs)} | {found['seconds_a_step']:.0f} | {where} |")
    picture = ""
    if shown:
        draw(shown, folder / "curves.png")
        picture = "![Accuracy, form and distance against the training step](curves.png)\n"
    problems = next(iter(results.values()))["problems"] if results else arms.HELD_OUT
    (folder / "README.md").write_text(
        PAGE.format(
            name=NAME,
            steps=STEPS,
            problems=problems,
            tokens=arms.MAX_TOKENS,
            largest=LARGEST,
            prompts=arms.PROMPTS,
            samples=arms.SAMPLES,
            on_policy=arms.ON_POLICY,
            off_policy=arms.OFF_POLICY,
            table="\n".join(lines),
            tuning="\n".join(tuning),
            each="\n".join(each),
            picture=picture,
            exploited="\n".join(
                exploited(arm, results)
                for arm in (*arms.NEEDED, *arms.LATER)
                if any(run["lam"] == arm.lam for run in results.values())
            ),
        )
    )


PAGE = """# A flawed reward against preferences, on a real model

{name}, sums of two numbers from 1 to {largest} ("What is 13 + 14? Answer with the number only."),
through stock verl: FSDP2, vLLM, float32, LoRA, {steps} steps of {prompts} prompts x {samples} responses of at most
{tokens} tokens. Made by `python -m experiments.real_hybrid.arms`.

The reward pays 0.7 for a right response and 0.3 for one that is only a number, right or not. Before training the model
mostly writes the sum out ("13 + 14 = 25"), which is right now and then. A model that answers with any number at once
earns the 0.3 for certain, and loses the steps that made some of its answers right. Of {on_policy} training problems
those are used whose responses before training differ in reward.

The preferences are of {off_policy} other sums: the model's own wrong response before training, against the same words
with the answer in place of their last number. Both have one form, so that the form makes no difference between them.

**Expected:** with the reward alone (lambda 0, GRPO) "only a number" goes to 1 and accuracy falls; with lambda 0.5 the
preferences pull towards right sums that are written out, and hold the form back in proportion to lambda.

**What came:**

{table}

{picture}
Over all runs, those of tuning among them:

{exploited}

"Right": the last number anywhere in the response is the answer; {problems} held-out sums, greedy, at most {tokens}
tokens, before and after scored alike. The interval is a paired bootstrap over problems (95 %, 10,000 resamples) of the
mean over seeds. The distance is verl's `actor/kl_loss` of the sampled responses, with coefficient 0. The share of the
slopes is the mean over the steps. verl draws an adapter's first weights without a seed, so a seed does not fix a run.

## Tuning

Every arm is tried at two learning rates on seed 100; the rate with the higher sampled reward in the last 5 steps is
used for the seeds above. It is the flawed reward that is looked at, since its user has nothing else.

{tuning}

## Each run

{each}
"""
