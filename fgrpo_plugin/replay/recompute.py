"""``fgrpo replay``: the loss of an update that was not finite, once more from its file, and which rows made it so.

Each row goes through the very loss of the run by itself; neither verl nor a model is needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.table import Table

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import F_GRPO, F_HAL, PREFERENCE_FIELDS, ROW_FIELDS, SUMS
from fgrpo_plugin.host.replay_rows import Saved, unpack
from fgrpo_plugin.host.worker.policy_loss import f_grpo_policy_loss, f_hal_policy_loss
from fgrpo_plugin.losses.checks import NotFinite
from fgrpo_plugin.terminal import Terminal

LOSSES = {F_GRPO: f_grpo_policy_loss, F_HAL: f_hal_policy_loss}
SHOWN = 20
"""Rows in the table, at most."""
_LOG_PROBS = {"log_prob": "log pi", "ref_log_prob": "log pi_ref", "old_log_prob": "log pi_old"}


@dataclass(frozen=True)
class Row:
    """One row of a file, computed once more.

    Attributes:
        index: in the file, from 0.
        kind: on-policy, desirable or undesirable.
        tokens: of its response.
        reward: r, its implicit reward; NaN where it cannot be computed.
        loss: its summand of the loss times its denominator.
        slope: largest |dL/d log pi| of its tokens.
        reason: why it is not finite, or "".
    """

    index: int
    kind: str
    tokens: int
    reward: float
    loss: float
    slope: float
    reason: str = ""


def recompute(saved: Saved, *, float64: bool = False) -> list[Row]:
    """Compute each row of a file once more.

    Args:
        saved: what the file holds.
        float64: in double precision, in place of that of the run.

    Raises:
        ValueError: the file's settings are not known here, as those of a divergence that is not registered.
    """
    return [_row(saved, index, float64) for index in range(len(saved.rows["response_mask"]))]


def _row(saved: Saved, index: int, float64: bool) -> Row:
    settings = FDivergenceConfig(**saved.about["settings"])
    given = {name: values[index : index + 1] for name, values in saved.rows.items() if name != "responses"}
    if float64:
        given |= {name: given[name].double() for name in _LOG_PROBS}
    side = float(given["f_divergence_side"]) if "f_divergence_side" in given else 0.0
    mask = given["response_mask"].bool()
    if side:
        mask = torch.arange(mask.shape[1]) < given["f_divergence_tokens"].unsqueeze(-1)
    kind = "on-policy" if side == 0 else "desirable" if side > 0 else "undesirable"
    row = partial(Row, index, kind, int(mask.sum()))
    if not mask.any():
        return row(reward=math.nan, loss=0.0, slope=0.0)
    reason = "; ".join(_bad_inputs(given, mask))
    log_prob = given["log_prob"].clone().requires_grad_()
    config = SimpleNamespace(
        policy_loss=SimpleNamespace(f_divergence=settings), global_batch_info={"dp_size": saved.about["dp_size"]}
    )
    fields = (*ROW_FIELDS, *(PREFERENCE_FIELDS if "f_divergence_side" in given else ()))
    try:
        loss, sums = LOSSES[saved.about["loss"]](
            given["old_log_prob"],
            log_prob,
            torch.zeros_like(log_prob),
            given["response_mask"],
            config=config,
            ref_log_prob=given["ref_log_prob"],
            **{name: given[name] for name in fields},
        )
    except NotFinite as error:
        return row(reward=math.nan, loss=math.nan, slope=math.nan, reason=reason or f"r overflows ({error})")
    loss.backward()
    assert log_prob.grad is not None
    prefix = SUMS + ("" if side == 0 else f"{kind}_")
    reward, own = sums[prefix + "reward"], sums[prefix + "loss"]
    slope = float(log_prob.grad.abs().max())
    if not reason and not (math.isfinite(own) and math.isfinite(slope)):
        what = "slope" if math.isfinite(own) else "term"
        reason = f"|a| w times the {what} of {settings.divergence} overflows at r = {reward:.6g}"
    return row(reward=reward, loss=own, slope=slope, reason=reason)


def _bad_inputs(given: dict[str, torch.Tensor], mask: torch.Tensor) -> Iterator[str]:
    for name, shown in _LOG_PROBS.items():
        places = (mask & ~torch.isfinite(given[name]))[0].nonzero().flatten().tolist()
        if places:
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            yield f"{shown} = {float(given[name][0, places[0]])} at token {places[0]}{more}"
    for name in ROW_FIELDS[:3]:
        if not bool(torch.isfinite(given[name]).all()):
            yield f"{name.removeprefix('f_divergence_')} = {float(given[name])}"


def replay(file: Path, console: Terminal, *, float64: bool = False) -> bool:
    """Print what becomes of a file's update, and return whether it is not finite here either.

    Raises:
        ValueError: as `unpack` and `recompute`.
    """
    saved = unpack(file)
    about = saved.about
    rows = recompute(saved, float64=float64)
    bad = [row for row in rows if row.reason]
    precision = "float64" if float64 else str(saved.rows["log_prob"].dtype).removeprefix("torch.")
    where = f"step {about['step']}, " if "step" in about else ""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    say(f"{file}: {where}rank {about['rank']}, {len(rows)} rows, loss {about['loss']} ({versions})")
    say(f"in the run: {about['said']}")
    settings = about["settings"]
    say(f"computed again in {precision}: {settings['divergence']}, level {settings['level']}, beta {settings['beta']}")
    total = sum(row.loss / float(saved.rows["f_divergence_count"][row.index].clamp(min=1)) for row in rows)
    say(f"sum of loss / denominator over the rows, without scales and lambda: {total:.6g}")
    if bad:
        say(f"{len(bad)} rows are not finite" + (f", the first {SHOWN} of them:" if len(bad) > SHOWN else ":"))
        _print_table(saved, bad, console)
        return True
    largest = sorted((row for row in rows if row.slope), key=lambda row: -row.slope)[:3]
    if about["kind"] == "gradient":
        say(
            "The loss and its slope to every log-prob are finite, so the model's backward pass made the gradient what "
            "it was: its weights or activations, their precision, or slopes too large to be squared."
        )
    else:
        say(f"Every row is finite in {precision}.")
    if largest:
        say("the rows with the largest slopes:")
        _print_table(saved, largest, console)
    return False


def _print_table(saved: Saved, rows: list[Row], console: Terminal) -> None:
    table = Table("row", "kind", "tokens", "a", "w", "r", "loss", "largest slope", "why", "first token ids")
    for row in rows[:SHOWN]:
        numbers = [float(saved.rows[name][row.index]) for name in ROW_FIELDS[:2]]
        numbers += [row.reward, row.loss, row.slope]
        ids = saved.rows["responses"][row.index, : min(row.tokens, 8)].tolist() if "responses" in saved.rows else []
        shown = [f"{value:.4g}" for value in numbers]
        table.add_row(f"{row.index}", row.kind, f"{row.tokens}", *shown, row.reason, " ".join(map(str, ids)))
    console.print(table)
