"""Make experiments/lambda_lab/README.md and its figure from experiments/lambda_lab/results:  python experiments/lambda_lab/report.py"""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from sweeps import (
    FIGURE,
    HERE,
    RESULTS,
    SWEPT,
    Run,
    apart_rows,
    by_lambda,
    draw,
    markdown,
    matched_rows,
    measured_q,
    preset_rows,
    read,
    read_sweeps,
    spread,
    starts,
    sweep_rows,
    swept,
    win_rows,
)

from fgrpo_plugin.config import PRESETS

PAGE = """# Lambda on a reward that can be exploited

Goal: see in minutes, on one CPU core, what f-HAL's lambda is for. On-policy data are rewarded by a flawed proxy, preference
data tell the truth about a few prompts, and a judge who is never asked during training measures what came of it.

```bash
python experiments/lambda_lab/lab.py --out runs/again                          # the sweep of `stable`: a table and a figure
python experiments/lambda_lab/lab.py --out runs/pearson --divergence pearson   # with another setting; see --help
python experiments/lambda_lab/lab.py --preset paper                            # makes what results/ lacks: now nothing
python experiments/lambda_lab/report.py                                        # this page and its figure, from results/
```

The task (`fgrpo_plugin/quickstart/hybrid.py`) is two-digit addition with the quick start's model of 0.4 M parameters. The
judge wants the sum and nothing else. The proxy pays 0.4 for the right last digit and 0.6 for a response that ends with "!", so
that a bluff ("73!" to 12+34=) is worth more than the sum. The warm-up stops early and has seen some bluffs. The preferences:
the sum over a wrong one, over a bluff and over itself with "!", for 64 of some 7400 training prompts. Proxy, preferences and
judge were fixed in commit bd1c989, before the first run.

The loop (`loop.py`) is plain torch around `group_advantages`, `group_weights`, `implicit_reward`, `f_grpo_loss`, `fdo_loss`
and `f_hal_loss`. lambda = 0 draws no preferences, lambda = 1 rolls nothing out.

## Measured

The preset `stable`; `paper` and `released` below. {seeds} seeds, each run made once; means over 256 held-out prompts, mean ± standard deviation over the seeds. Rewards are
those of responses sampled at temperature 1 unless it says greedy. Made at {made} (`results/` has the commit of each run; the settings of
the first sweep are written there as they are called now, its numbers are as they were made); {seconds} s a run (median; one core of a
machine that had other work to do), without a seed's warm-up.

{sweep}

![Proxy against true reward, a point for each lambda](../../docs/figures/hybrid_sweep.png)

{verdict}

True reward of every run:

{runs}

## Presets: which lambdas are the same experiment

What lambda means depends on the preset ([docs/lambda.md](../../docs/lambda.md)). The sweep again with `paper` and `released`:

{presets}

* **`paper` and `released` are one experiment.** With one optimiser step a batch, gamma = 1 is the constant 1 + 1/beta: same
  gradient in every step, up to rounding, which in the end samples other responses. True rewards differ by at most {apart}.
* **The same lambda is another experiment.** q = mean(|a| w) of the paper's weights over that of `stable`'s was {q_first} in the first
  step ({q_range} in means over the runs), so at the same lambda the on-policy half of `paper` pulls about {factor} times as hard against
  its preference half as that of `stable` does.
  By (1 - l')/l' = q (1 + 1/beta) (1 - l)/l the lambdas on one line begin with the same balance of the halves; the
  right columns are runs of `stable` at the rounded l':

{matched}

On-policy share is `on_policy_slope / (on_policy_slope + preference_slope)`, mean over seeds, in the first step and over the run.
`stable` minus `paper` on each line, mean over the seeds, and on how many seeds it has that sign:

{apart_rows}

So the balance agrees and the true reward nearly does, but the runs are not the same: `stable` ends with more of the proxy on every
seed. What the formula leaves out: the weights inside a group, the size of the loss before clipping, and every step after the
first. At the same lambda the true rewards of `paper` and `stable` differ by up to {same_lambda}.

The verdict above is that of `stable`. Seeds on which the true reward is above both ends, of {seeds}:

{wins}

## Settings and tuning

The settings of the sweep are the defaults of `Settings` in `loop.py`. {tried} configurations were tried ({tuning_runs} runs,
seeds {tuning_seeds}): `lab.py` itself records every run on a seed from 100 on in `results/tuning.json`. Chosen: the
largest true reward on seed 100, averaged over lambda = 0.5 and 1 so that neither is favoured; a second seed was run for
the first configuration and the chosen one. The first column says in what a configuration differs from the chosen one;
true reward:

{tuning}
"""

READING = """

Where this is not what was expected, or needs care:

* **lambda = 1 learns more than a little** of what sampling shows: its responses become less random also on prompts that no
  preference speaks of. Its greedy responses become worse than they were, {greedy_1} against {greedy_start}.
* **Greedily the middle hardly gains** over the start ({greedy_middle} against {greedy_start} at lambda = 0.5). The gain is in sampled
  responses, of which the losses speak.
* **The middle is held back by the proxy's other flaw.** Without "!" the last digit is all that is left to earn: at lambda = 0.5
  it is right in {digits_middle} of the responses, the whole sum in {true_middle}. The preferences are too few to close that gap.
* **lambda = 0 has learned some arithmetic.** Its last digit is right in {digits_0} of the responses ({digits_start} before): responses
  such as "46!", for which the proxy pays all and the judge nothing. A judge who overlooked the "!" would see a smaller
  failure; how many sums are right but for it was not recorded.
* **A small lambda is not enough**: at 0.25 most responses are still confident. The task was made for the failure to show;
  where the middle begins says nothing about another task."""


def verdict(runs: Sequence[Run]) -> str:
    """What the paper leads one to expect beside what was measured, and how to read it."""
    groups = by_lambda(runs)
    true = {(run["lambda"], run["seed"]): run["after"]["true"] for run in runs}
    middle = [lam for lam in groups if 0 < lam < 1]
    wins = {
        lam: sum(true[lam, run["seed"]] > max(true[0.0, run["seed"]], true[1.0, run["seed"]]) for run in groups[lam])
        for lam in middle
    }

    def mean(lam: float | None, key: str) -> str:
        group, when = (starts(runs), "before") if lam is None else (groups[lam], "after")
        return f"{spread(group, when, key)[0]:.2f}"

    def change(lam: float, key: str) -> str:
        return f"{mean(None, key)} to {mean(lam, key)}"

    rows = [
        ["expected", "measured"],
        ["lambda = 0 exploits the proxy", f"proxy {change(0.0, 'proxy')}, true reward {change(0.0, 'true')}"],
        [
            "lambda = 1 is safe but learns little",
            f"true reward {change(1.0, 'true')}, greedy {change(1.0, 'true_greedy')}",
        ],
        [
            "the middle wins",
            "; ".join(
                f"lambda = {lam:g}: true reward {change(lam, 'true')}, greedy {change(lam, 'true_greedy')}, above both "
                f"ends on {wins[lam]} of {len(groups[lam])} seeds"
                for lam in middle
            ),
        ],
    ]
    return markdown(rows) + READING.format(
        digits_0=mean(0.0, "last_digit"),
        digits_start=mean(None, "last_digit"),
        digits_middle=mean(0.5, "last_digit"),
        true_middle=mean(0.5, "true"),
        greedy_start=mean(None, "true_greedy"),
        greedy_1=mean(1.0, "true_greedy"),
        greedy_middle=mean(0.5, "true_greedy"),
    )


def run_rows(runs: Sequence[Run]) -> list[list[str]]:
    """True reward of each run: a row for each seed, a column for each lambda."""
    groups = by_lambda(runs)
    rows = [["seed", "before", *(f"lambda {lam:g}" for lam in groups)]]
    for run in sorted(starts(runs), key=lambda run: run["seed"]):
        after = [r["after"]["true"] for group in groups.values() for r in group if r["seed"] == run["seed"]]
        rows.append([str(run["seed"]), *(f"{value:.3f}" for value in (run["before"]["true"], *after))])
    return rows


def tuning_rows(tuning: Sequence[Run], chosen: dict[str, Any]) -> list[list[str]]:
    """True reward of each configuration that was tried, by seed, in the order of trying."""
    configurations: dict[tuple[str, int], dict[float, float]] = {}
    for run in tuning:
        differs = {key: value for key, value in run["settings"].items() if value != chosen[key]}
        name = ", ".join(f"{key} {value}" for key, value in differs.items()) or "**chosen**"
        configurations.setdefault((name, run["seed"]), {})[run["lambda"]] = run["after"]["true"]
    lambdas = sorted({run["lambda"] for run in tuning})
    rows = [["", "seed", *(f"lambda {lam:g}" for lam in lambdas), "mean of 0.5 and 1"]]
    for (name, seed), true in configurations.items():
        cells = [f"{true[lam]:.3f}" if lam in true else "" for lam in lambdas]
        rows.append([name, str(seed), *cells, f"{(true[0.5] + true[1.0]) / 2:.3f}"])
    return rows


def page() -> str:
    """The text of experiments/lambda_lab/README.md."""
    sweeps, tuning = read_sweeps(RESULTS), read(RESULTS / "tuning.json")
    sweep = swept(sweeps["stable"])
    configurations = {json.dumps(run["settings"]) for run in tuning}
    q, q_by_lambda = measured_q(sweeps["paper"])
    means = [{lam: spread(group, "after", "true")[0] for lam, group in by_lambda(sweeps[p]).items()} for p in PRESETS]
    beta = sweep[0]["settings"]["beta"]
    return PAGE.format(
        seeds=len(starts(sweep)),
        made="; ".join(dict.fromkeys(f"{run['commit']}, {run['date']}" for runs in sweeps.values() for run in runs)),
        seconds=f"{statistics.median(run['seconds'] for run in sweep):.0f}",
        sweep=markdown(sweep_rows(sweep)),
        verdict=verdict(sweep),
        runs=markdown(run_rows(sweep)),
        presets=markdown(preset_rows(sweeps)),
        apart=f"{max(abs(means[1][lam] - means[2][lam]) for lam in SWEPT):.3f}",
        q_first=f"{q:.2f}",
        q_range=f"{min(q_by_lambda.values()):.2f} to {max(q_by_lambda.values()):.2f}",
        factor=f"{q * (1 + 1 / beta):.1f}",
        matched=markdown(matched_rows(sweeps, q)),
        apart_rows=markdown(apart_rows(sweeps, q)),
        wins=markdown(win_rows(sweeps)),
        same_lambda=f"{max(abs(means[1][lam] - means[0][lam]) for lam in SWEPT):.2f}",
        tried=len(configurations),
        tuning_runs=len(tuning),
        tuning_seeds=", ".join(str(run["seed"]) for run in starts(tuning)),
        tuning=markdown(tuning_rows(tuning, sweep[0]["settings"])),
    )


if __name__ == "__main__":
    (HERE / "README.md").write_text(page())
    draw(read_sweeps(RESULTS), FIGURE)
