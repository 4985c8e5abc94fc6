"""What preference rows add to a step of f-HAL, against the same number of further on-policy rows.

    python -m benchmarks.hybrid_cost [--rows 32 --prompt 32 --response 64 --layers 4 --hidden 256 --repeats 20]

The share is preference rows per on-policy row; on-policy work is the same throughout, and every row has the same
length, so that packing is the same too. A step is ``update_actor`` in verl's ``ActorRolloutRefWorker`` (FSDP2, the
device that is there) and, for f-HAL, joining before it: rows drawn, their reference log-probs looked up (cache warm) or
computed and written to a new cache (cold), rows put into verl's form, numbered, and placed among the others.
Without the transfers of verl's queue, which needs a Ray cluster: on-policy rows pass through it as well.

    added time = (f_hal at this share - f_grpo) / (f_grpo on (1 + share) times the rows - f_grpo)

All variants run in turns in one process, in an order shuffled each time. The table shows the shortest of the repeats,
since other processes only add time and a difference of differences has little to spare; ratios of their differences;
and in brackets the quartiles of the same ratio formed in each turn. Beside the time that passes it counts CPU seconds.
"""

import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict

from fgrpo_plugin.host.driver.joining import as_queue_rows, joined_order, preference_numbers
from fgrpo_plugin.host.driver.preference_source import PreferenceSource
from fgrpo_plugin.host.driver.rows import on_policy_fields
from fgrpo_plugin.host.settings.reading import read_settings
from fgrpo_plugin.preference.token_rows import TokenRow, TokenRows
from tests.support.worker import (
    GROUP,
    attach_advantages,
    config,
    f_hal,
    in_order,
    join_process_group,
    make_model,
    make_rows,
    nested,
    response_log_probs,
    update,
)

SHARES = (0.0, 0.25, 0.5, 1.0)
TARGET = 1.05
LAM = 0.5
LOG_PROB = -5.7  # nats; near what a random model of about 300 tokens gives


class Seconds(NamedTuple):
    """What a step took."""

    wall: float
    cpu: float


class MadeRows(PreferenceSource):
    """The trainer's own preference rows, of made tokens in place of files."""

    def __init__(self, composed: Any, made: list[TokenRow], cache: str) -> None:
        self._made = made
        OmegaConf.update(composed, "data.preference.cache_dir", cache, force_add=True)
        super().__init__(composed, tokenizer=None)

    def _load(self, *, held_out: bool) -> TokenRows:
        return TokenRows.of(self._made)


def make_preferences(rows: int, prompt: int, response: int) -> list[TokenRow]:
    """Rows of random tokens, D+ and D- in turn."""
    tokens = torch.randint(3, 200, (rows, prompt + response), generator=torch.Generator().manual_seed(1)).numpy()
    return [TokenRow(row[:prompt], row[prompt:], i % 2 == 0, None, f"row {i}") for i, row in enumerate(tokens)]


class Steps:
    """Optimiser steps of f-GRPO and f-HAL in one worker."""

    def __init__(self, folder: str, rows: int, prompt: int, response: int, micro: int) -> None:
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.engine_workers import ActorRolloutRefWorker
        from verl.workers.utils.losses import ppo_loss

        self.folder, self.rows, self.prompt, self.response = folder, rows, prompt, response
        self.sizes = [
            f"data.train_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
            f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={micro}",
            f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={micro}",
        ]
        kl = ["algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.use_kl_loss=true"]
        composed = {
            "f_grpo": config(folder, *self.sizes, "algorithm.adv_estimator=f_grpo"),
            "f_hal": self.f_hal_config(rows),
        }
        self.losses = {
            name: partial(ppo_loss, config=omega_conf_to_dataclass(one.actor_rollout_ref.actor))
            for name, one in composed.items()
        }
        self.settings = read_settings(composed["f_hal"].actor_rollout_ref.actor.policy_loss.f_divergence)
        self.worker = ActorRolloutRefWorker(composed["f_grpo"].actor_rollout_ref, role="actor")
        self.reference = ActorRolloutRefWorker(config(folder, *self.sizes, *kl).actor_rollout_ref, role="ref")
        self.worker.init_model()
        self.reference.init_model()

    def f_hal_config(self, batch_size: int) -> Any:
        return config(self.folder, *self.sizes, *f_hal(self.folder), f"+data.preference.batch_size={batch_size}")

    def on_policy(self, rows: int, lam: float | None = None) -> TensorDict:
        """Rows as they stand in the queue when the actor is updated."""
        data = make_rows([self.prompt] * rows, [self.response] * rows)
        data["old_log_probs"] = data.pop("rollout_log_probs")
        data["ref_log_prob"] = nested(torch.full((rows, self.response), LOG_PROB))
        attach_advantages(data, self.settings)
        if lam is not None:
            data.update(on_policy_fields(rows, lam))
        return data

    def f_grpo(self, rows: int) -> Callable[[], Seconds]:
        """A step on so many on-policy rows."""
        data = self.on_policy(rows)
        return partial(self._timed, "f_grpo", lambda: data)

    def f_hal(self, share: float, cold: bool) -> Callable[[], Seconds]:
        """A step on the on-policy rows and so many preference rows for each of them."""
        data, batch_size = self.on_policy(self.rows, LAM), round(share * self.rows)
        if not batch_size:
            return partial(self._timed, "f_hal", lambda: data)
        composed = self.f_hal_config(batch_size)
        made = make_preferences(4 * batch_size, self.prompt, self.response)
        order = partial(joined_order, self.rows, 1, 1, batch_size)

        def join(preferences: PreferenceSource) -> TensorDict:
            drawn = [row for rank in preferences.draw(1, 1)[0] for row in rank]
            reference, known = preferences.reference(drawn, self._reference)
            assert known == (0.0 if cold else 1.0)
            fields = as_queue_rows(drawn, reference) | preference_numbers(drawn, self.settings, LAM)
            return in_order(order(), on=data, off=TensorDict(fields, batch_size=batch_size))

        if cold:

            def step() -> Seconds:
                with tempfile.TemporaryDirectory() as cache:
                    return self._timed("f_hal", partial(join, MadeRows(composed, made, cache)))

            return step
        preferences = MadeRows(composed, made, f"{self.folder}/cache{batch_size}")
        preferences.reference(made, self._reference)
        return partial(self._timed, "f_hal", partial(join, preferences))

    def _reference(self, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
        data = TensorDict(as_queue_rows(rows), batch_size=len(rows))
        return list(response_log_probs(self.reference.compute_ref_log_prob, data, entropy=False).unbind())

    def _timed(self, loss: str, rows: Callable[[], TensorDict]) -> Seconds:
        self.worker.actor.set_loss_fn(self.losses[loss])
        gc.collect()
        start, used = time.perf_counter(), time.process_time()
        update(self.worker, rows())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Seconds(time.perf_counter() - start, time.process_time() - used)


def main(
    rows: int = 32,
    prompt: int = 32,
    response: int = 64,
    layers: int = 4,
    hidden: int = 256,
    micro: int = 8,
    repeats: Annotated[int, typer.Option(min=2)] = 20,
    warmup: int = 1,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print the shortest times and their ratios."""
    join_process_group()
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, layers, hidden)
        made = Steps(folder, rows, prompt, response, micro)
        steps = {("f_grpo", share): made.f_grpo(round(rows * (1 + share))) for share in SHARES}
        steps |= {("warm", share): made.f_hal(share, cold=False) for share in SHARES}
        steps |= {("cold", share): made.f_hal(share, cold=True) for share in SHARES if share}
        times: dict[tuple[str, float], list[Seconds]] = {name: [] for name in steps}
        order, shuffle = list(steps), random.Random(0)
        for repeat in range(warmup + repeats):
            shuffle.shuffle(order)  # what ran just before is not always the same variant
            for name in order:
                taken = steps[name]()
                if repeat >= warmup:
                    times[name].append(taken)
    shape = f"{rows} on-policy rows of {prompt}+{response} tokens, {layers} layers x {hidden}, {repeats} repeats"
    _report(times, shape, output)


def added(times: dict[tuple[str, float], float], cache: str, share: float) -> float:
    """Time that preference rows add, over that of as many on-policy rows."""
    base = times["f_grpo", 0.0]
    return (times[cache, share] - base) / (times["f_grpo", share] - base)


class Measured:
    """Seconds of one clock: the shortest of each variant, and what they say about the added time."""

    def __init__(self, times: dict[tuple[str, float], list[float]]) -> None:
        self.shortest = {name: min(values) for name, values in times.items()}
        self._turns = [dict(zip(times, turn, strict=True)) for turn in zip(*times.values(), strict=True)]

    def added(self, cache: str, share: float) -> float:
        return added(self.shortest, cache, share)

    def cell(self, cache: str, share: float) -> str:
        low, _, high = statistics.quantiles([added(turn, cache, share) for turn in self._turns], n=4)
        return f"{self.added(cache, share):.2f} ({low:.2f} to {high:.2f})"


def _report(times: dict[tuple[str, float], list[Seconds]], shape: str, output: Path | None) -> None:
    clocks = [Measured({name: [one[clock] for one in taken] for name, taken in times.items()}) for clock in (0, 1)]
    shortest = clocks[0].shortest
    cpu = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu
    title = f"{shape}; {device}"
    columns = ("share", "cache", "f_hal, s", "f_grpo, (1 + share) rows, s", "added time", "added CPU time")
    table, lines = Table(title=f"f-HAL's step, {title}"), [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for column in columns:
        table.add_column(column)
    for share in SHARES:
        for cache in ("warm", "cold") if share else ("warm",):
            row = [
                f"{share:g}",
                cache if share else "",
                f"{shortest[cache, share]:.3f}",
                f"{shortest['f_grpo', share]:.3f}",
            ]
            row += [clock.cell(cache, share) if share else "" for clock in clocks]
            table.add_row(*row)
            lines.append(f"| {' | '.join(row)} |")
    verdicts = []
    for clock, name in zip(clocks, ("time", "CPU time"), strict=True):
        missed = [f"{share:g}" for share in SHARES if share and clock.added("warm", share) > TARGET]
        verdicts.append(f"added {name}, warm: " + (f"missed at {', '.join(missed)}" if missed else "met"))
    verdict = f"Target at most {TARGET}; " + "; ".join(verdicts) + "."
    Console().print(table, verdict)
    if output is not None:
        output.write_text(
            f"{title}, {date.today()}:\n\n" + "\n".join(lines) + f"\n\nShortest of the repeats. {verdict}\n"
        )


if __name__ == "__main__":
    typer.run(main)
