"""Packed rows against padded ones on the CPU platform: forward and backward of the actor, a micro-batch at a time.

    python -m benchmarks.packing [--repeats 3]

verl's actor worker (FSDP2, float32) makes one f-GRPO update of one micro-batch; timed is its `forward_backward_batch`,
without the optimiser. The model has SmolLM2-135M's sizes and random weights. Variants: rows padded or packed
(`use_remove_padding`), each with transformers' `sdpa` and with the platform's `cpu_packed`; in turns, in an order
shuffled each time. Shown are CPU seconds of the process, in brackets quartiles; wall-clock times are left out, since
they are those of whatever else the machine does.
"""

import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from tests.support.worker import GROUP, attach_advantages, config, join_process_group, make_model, make_rows, update

SHAPES = {  # SmolLM2-135M, and the quick start's model
    "SmolLM2-135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "quick start": {
        "vocab_size": 264,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
}
# What the rows are -> model, number of rows, tokens of a prompt, fewest and most tokens of a response
CASES = {
    "short answers": ("SmolLM2-135M", 8, 48, 4, 16),
    "uneven answers": ("SmolLM2-135M", 4, 32, 32, 288),
    "the quick start": ("quick start", 64, 7, 3, 4),
}
VARIANTS = {  # name -> use_remove_padding, attn_implementation
    "padded, sdpa": (False, "sdpa"),
    "padded, cpu_packed": (False, "cpu_packed"),
    "packed, sdpa": (True, "sdpa"),
    "packed, cpu_packed": (True, "cpu_packed"),
}
BASE = "padded, sdpa"


def prepared(folder: str, shape: dict[str, Any], responses: list[int], prompt: int) -> dict[str, Callable[[], float]]:
    """For each variant a function that makes one update and returns the CPU seconds of its passes."""
    import transformers
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.utils.losses import ppo_loss

    from fgrpo_plugin.host.settings.reading import read_settings

    make_model(folder, 1, 64)  # tokenizer and data files
    made = transformers.LlamaConfig(max_position_embeddings=2048, **shape)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    rows, most = len(responses), max(responses)
    found = {}
    for name, (packed, attention) in VARIANTS.items():
        model = "actor_rollout_ref.model"
        composed = config(
            folder,
            "algorithm.adv_estimator=f_grpo",
            f"{model}.use_remove_padding={str(packed).lower()}",
            f"{model}.override_config.attn_implementation={attention}",
            f"data.max_prompt_length={prompt}",
            f"data.max_response_length={most}",
            f"data.train_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={rows}",
            f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={rows}",
            f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={rows}",
            "actor_rollout_ref.actor.optim.optimizer=SGD",  # no states: as many workers as variants are in memory
        )
        worker = ActorRolloutRefWorker(composed.actor_rollout_ref, role="actor")
        worker.init_model()
        actor = composed.actor_rollout_ref.actor
        worker.actor.set_loss_fn(partial(ppo_loss, config=omega_conf_to_dataclass(actor)))
        data = make_rows([prompt] * rows, responses)
        data["old_log_probs"] = data["ref_log_prob"] = data["rollout_log_probs"]
        attach_advantages(data, read_settings(actor.policy_loss.f_divergence))
        found[name] = _timed(worker, data)
    return found


def _timed(worker: Any, data: Any) -> Callable[[], float]:
    engine = worker.actor.engine
    passes, taken = engine.forward_backward_batch, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = passes(*args, **kwargs)
        taken.append(time.process_time() - start)
        return result

    engine.forward_backward_batch = timed

    def call() -> float:
        update(worker, data)
        return taken.pop()

    return call


def case(name: str, repeats: int) -> list[str]:
    """Lines of the table for one set of rows."""
    shape, rows, prompt, fewest, most = CASES[name]
    responses = [fewest + round((most - fewest) * i / (rows - 1)) for i in range(rows)]
    random.Random(0).shuffle(responses)
    tokens = sum(responses) + rows * prompt
    with tempfile.TemporaryDirectory() as folder:
        calls = prepared(folder, SHAPES[shape], responses, prompt)
        times: dict[str, list[float]] = {variant: [] for variant in calls}
        order, shuffle = list(calls), random.Random(0)
        for repeat in range(repeats + 1):
            shuffle.shuffle(order)
            for variant in order:
                taken = calls[variant]()
                if repeat:
                    times[variant].append(taken)
    lines = []
    base = statistics.median(times[BASE])
    for variant, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        each = f"{middle / tokens * 1e3:.3f} ({low / tokens * 1e3:.3f} to {high / tokens * 1e3:.3f})"
        computed = tokens if VARIANTS[variant][0] else rows * (prompt + most)
        what = f"{shape}: {rows} x {prompt}+{fewest}..{most}"
        cells = (what, variant, f"{computed}", f"{computed / tokens:.2f}", each)
        lines.append(" | ".join((*cells, f"{middle / base:.2f}")))
        Console().print(lines[-1], highlight=False, soft_wrap=True)
    return lines


def main(
    repeats: int = 3,
    only: Annotated[str | None, typer.Option(help=f"One of: {', '.join(CASES)}.")] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print CPU time a token that is not padding, for each set of rows and each variant."""
    join_process_group()
    columns = (
        "rows",
        "variant",
        "tokens computed",
        "a real token",
        "CPU ms a real token",
        f"/ {BASE}",
        "wall clock / it",
    )
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for name in [only] if only else CASES:
        lines += case(name, repeats)
    said = (
        f"Medians of {repeats} repeats in shuffled order, in brackets quartiles; {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, {date.today()}."
    )
    Console().print(said, highlight=False)
    if output is not None:
        output.write_text("\n".join(f"| {line} |" for line in lines) + f"\n\n{said}\n")


if __name__ == "__main__":
    typer.run(main)
