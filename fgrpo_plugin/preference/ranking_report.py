"""`fgrpo prefs check --model`: in how many pairs the reference gives the chosen response the larger probability."""

import statistics
from collections.abc import Sequence

from rich.table import Table

from fgrpo_plugin.intervals import Measure
from fgrpo_plugin.preference.loading import RowSettings
from fgrpo_plugin.preference.ranking import Ranked
from fgrpo_plugin.preference.reference_ranking import Asked, rank_by_reference
from fgrpo_plugin.preference.token_rows import TokenRow
from fgrpo_plugin.progress import Lines, follower, progress_bars
from fgrpo_plugin.terminal import Terminal

PAPER = "arXiv 2405.19534"


def report_ranking(
    rows: Sequence[TokenRow], settings: RowSettings, asked: Asked, console: Terminal, progress: Terminal
) -> None:
    """Rank pairs by the reference and print both accuracies, where they are from and what they mean.

    Args:
        rows: in tokens, whatever their length.
        settings: the run's lengths.
        asked: the model and how many pairs.
        console: where the result goes.
        progress: where progress goes: bars on a terminal, lines elsewhere.
    """
    lines = Lines(progress)
    with progress_bars(progress) as bars:
        follow = follower(bars, lines)("responses by the reference")
        ranking = rank_by_reference(rows, settings, asked, follow, lines.say)
    if ranking.found is None:
        for line in ranking.lines:
            console.print(f"ranking accuracy of the reference: {line}", style="yellow", highlight=False, soft_wrap=True)
        return
    count = len(ranking.found.lead)
    whole, by_token = (
        Measure.of_share(right.double().tolist()) for right in (ranking.found.right, ranking.found.right_per_token)
    )
    table = Table(
        "", "right", "share", "95 %", title=f"pairs that the reference ranks rightly, {count} of {ranking.of}"
    )
    for name, measure in (("log pi(chosen) >= log pi(rejected)", whole), ("the same of log pi / tokens", by_token)):
        interval = f"{measure.low:.3f} to {measure.high:.3f}"
        table.add_row(name, f"{round(sum(measure.values))} of {count}", f"{measure.mean:.3f}", interval)
    console.print(table)
    chosen = [f"the {count} pairs were drawn with --seed {asked.seed}"] if count < ranking.of else []
    for line in [*chosen, *ranking.lines, *conclusions(ranking.found, whole, by_token)]:
        console.print(line, highlight=False)


def conclusions(found: Ranked, whole: Measure, by_token: Measure) -> list[str]:
    """Return what the two accuracies say before a run.

    Args:
        found: p pairs, at least one.
        whole: whether each is ranked rightly by its responses' log-probs.
        by_token: the same of the means over tokens.
    """
    lines = [
        f"the reference already ranks {whole.mean:.0%} of the pairs rightly ({against_chance(whole)}), by the mean "
        f"over tokens {by_token.mean:.0%} ({against_chance(by_token)})"
    ]
    longer = float(found.longer.double().mean())
    lines.append(f"the chosen response is the longer one in {longer:.0%} of the pairs; the sum favours the shorter one")
    wrong = (-found.lead[~found.right]).tolist()
    if wrong:
        lines.append(
            f"half of the {len(wrong)} wrong pairs are wrong by {statistics.median(wrong):.1f} nats or more; a pair "
            "turns once r of its two responses is beta times its nats apart"
        )
        lines.append(
            f"DPO rarely turns one ({PAPER}), and f-HAL's loss is of log-ratios as well: on such data "
            "val-preference/ranking_accuracy starts here, and may stay while val-preference/accuracy rises"
        )
    return lines


def against_chance(measure: Measure) -> str:
    """Compare an accuracy with one half, by its interval."""
    if measure.low > 0.5:
        return "better than chance"
    return "worse than chance" if measure.high < 0.5 else "not told from chance"
