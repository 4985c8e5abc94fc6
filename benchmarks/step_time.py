"""Time of one f-GRPO step against GRPO's, on the same rows, in the host's own workers.

    python benchmarks/step_time.py [--rows 64 --prompt 64 --response 128 --layers 4 --hidden 256 --repeats 9]

Counts what the two algorithms do differently: log-prob passes and the actor update, through verl's
``ActorRolloutRefWorker`` (FSDP2, the device that is there). Generation, reward and weight sync are the same for both
and are left out. The variants run in turns in one process, in an order shuffled each time (a fixed order alone moved
the ratio by several percent); the table shows ratios of medians.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

if not torch.cuda.is_available():
    os.environ["VERL_PLATFORM"] = "cpu"
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29577")
os.environ.setdefault("RAY_LOCAL_WORLD_SIZE", "1")

import numpy as np
import verl  # noqa: F401  (loads the plugin)
from hydra import compose, initialize_config_module
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict

GROUP = 4


def config(folder: str, *overrides: str) -> Any:
    """The stock configuration, completed as ``main_ppo`` would."""
    from fgrpo_plugin.host.validate import complete, is_f_divergence

    groups = ["+fgrpo=cpu"] if not torch.cuda.is_available() else []
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose(
            "ppo_trainer",
            [
                *groups,
                f"actor_rollout_ref.model.path={folder}",
                f"data.train_files={folder}/rows.parquet",
                f"data.val_files={folder}/rows.parquet",
                "actor_rollout_ref.rollout.name=vllm",
                f"actor_rollout_ref.rollout.n={GROUP}",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.ref.strategy=fsdp2",
                *overrides,
            ],
        )
    if is_f_divergence(composed):
        complete(composed)
    return composed


def make_model(folder: str, layers: int, hidden: int) -> None:
    """A random Qwen2 model and a data file, so that the configuration names things that exist."""
    import pandas as pd
    from transformers import AutoModelForCausalLM, Qwen2Config

    from fgrpo_plugin.quickstart.model import build_tokenizer

    tokenizer = build_tokenizer()
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pd.DataFrame({"prompt": [[{"role": "user", "content": "1+1="}]]}).to_parquet(f"{folder}/rows.parquet")


def make_rows(rows: int, prompt: int, response: int) -> TensorDict:
    """Rows as the host's queue hands them to a worker: nested, with random tokens and binary rewards."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 200, (rows, prompt + response), generator=generator)
    nested = lambda values: torch.nested.as_nested_tensor(list(values), layout=torch.jagged)  # noqa: E731
    ones = torch.ones(rows, response, dtype=torch.int64)
    loss_mask = torch.cat([torch.zeros(rows, prompt, dtype=torch.int64), ones], dim=1)
    return TensorDict(
        {
            "prompts": nested(tokens[:, :prompt]),
            "responses": nested(tokens[:, prompt:]),
            "input_ids": nested(tokens),
            "position_ids": nested(torch.arange(prompt + response).expand(rows, -1).clone()),
            "response_mask": nested(ones),
            "loss_mask": nested(loss_mask),
            "rollout_log_probs": nested(-torch.rand(rows, response, generator=generator)),
            "rm_scores": (torch.rand(rows, generator=generator) > 0.5).float(),
        },
        batch_size=rows,
    )


class Step:
    """One optimiser step of one algorithm on fixed rows."""

    def __init__(self, worker: Any, reference: Any, composed: Any, rows: TensorDict, micro: int) -> None:
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.utils.losses import ppo_loss

        self.worker, self.reference, self.composed, self.rows, self.micro = worker, reference, composed, rows, micro
        self.loss = partial(ppo_loss, config=omega_conf_to_dataclass(composed.actor_rollout_ref.actor))
        self.ours = composed.algorithm.adv_estimator == "f_grpo"
        self.bypass = bool(composed.algorithm.rollout_correction.bypass_mode)
        self.needs_reference = self.ours or composed.actor_rollout_ref.actor.use_kl_loss

    def _forward(self, compute: Callable, data: TensorDict, entropy: bool) -> Any:
        from verl.utils import tensordict_utils as tu
        from verl.workers.utils.padding import response_from_nested

        batch = data.copy()
        tu.assign_non_tensor(batch, calculate_entropy=entropy, compute_loss=False, temperature=1.0)
        return response_from_nested(compute(batch)["log_probs"], data["response_mask"])

    def __call__(self) -> float:
        from verl.utils import tensordict_utils as tu

        from fgrpo_plugin.advantages import group_advantages
        from fgrpo_plugin.host.config import read_settings
        from fgrpo_plugin.host.trainer import minibatch_of_row, row_numbers

        data = self.rows.copy()
        rewards = data.pop("rm_scores")
        uids = np.array([f"p{i // GROUP}" for i in range(len(rewards))], dtype=object)
        self.worker.actor.set_loss_fn(self.loss)
        start = time.perf_counter()
        if self.bypass:
            data["old_log_probs"] = data["rollout_log_probs"]
        else:
            data["old_log_probs"] = self._forward(self.worker.compute_log_prob, data, entropy=True)
        if self.needs_reference:
            data["ref_log_prob"] = self._forward(self.reference.compute_ref_log_prob, data, entropy=False)
        advantage = group_advantages(rewards, uids).unsqueeze(-1)
        spread = advantage.expand(-1, data["responses"].offsets().diff().max())
        data["advantages"] = torch.nested.as_nested_tensor(list(spread.clone()), layout=torch.jagged)
        if self.ours:
            settings = self.composed.actor_rollout_ref.actor.policy_loss.f_divergence
            mask = data["response_mask"].to_padded_tensor(0)
            numbers, _ = row_numbers(
                rewards=rewards,
                uids=uids,
                response_mask=mask,
                old_log_prob=data["old_log_probs"].to_padded_tensor(0.0),
                minibatch=minibatch_of_row(len(rewards), len(rewards), 1),
                padding=torch.zeros(len(rewards), dtype=torch.bool),
                settings=read_settings(settings),
                normalize_by_std=True,
            )
            data.update(numbers)
        tu.assign_non_tensor(
            data,
            calculate_entropy=False,
            global_batch_size=len(rewards),
            mini_batch_size=len(rewards),
            epochs=1,
            seed=0,
            dataloader_kwargs={"shuffle": False},
            temperature=1.0,
        )
        self.worker.update_actor(data)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main(
    rows: int = 64,
    prompt: int = 64,
    response: int = 128,
    layers: int = 4,
    hidden: int = 256,
    micro: int = 16,
    repeats: int = 9,
    warmup: int = 2,
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print medians and ratios."""
    from verl.workers.engine_workers import ActorRolloutRefWorker

    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, layers, hidden)
        sizes = [
            f"data.train_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={rows // GROUP}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
            f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={micro}",
            f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={micro}",
        ]
        grpo = ["algorithm.adv_estimator=grpo"]
        kl = [*grpo, "actor_rollout_ref.actor.use_kl_loss=true"]
        recomputed = ["algorithm.rollout_correction.bypass_mode=false"]
        bypass = ["algorithm.rollout_correction.bypass_mode=true"]
        variants = {
            "f_grpo": config(folder, *sizes, "algorithm.adv_estimator=f_grpo"),
            "grpo": config(folder, *sizes, *grpo, *recomputed),
            "grpo + KL": config(folder, *sizes, *kl, *recomputed),
            "grpo + KL + bypass_mode": config(folder, *sizes, *kl, *bypass),
        }
        worker = ActorRolloutRefWorker(variants["f_grpo"].actor_rollout_ref, role="actor")
        reference = ActorRolloutRefWorker(config(folder, *sizes, *kl).actor_rollout_ref, role="ref")
        worker.init_model()
        reference.init_model()
        fixed = make_rows(rows, prompt, response)
        steps = {name: Step(worker, reference, composed, fixed, micro) for name, composed in variants.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        order, shuffle = list(steps), random.Random(0)
        for repeat in range(warmup + repeats):
            shuffle.shuffle(order)  # what ran just before is not always the same variant
            for name in order:
                seconds = steps[name]()
                if repeat >= warmup:
                    times[name].append(seconds)
    _report(times, f"{rows} rows of {prompt}+{response} tokens, {layers} layers x {hidden}, {repeats} repeats", output)


def _report(times: dict[str, list[float]], title: str, output: Path | None) -> None:
    median = {name: statistics.median(values) for name, values in times.items()}
    targets = {"grpo": "1.02", "grpo + KL": "0.85", "grpo + KL + bypass_mode": "reported"}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"log-prob passes + update, {title}; {device}")
    lines = ["| variant | median, s | f_grpo / variant | target |\n| --- | --- | --- | --- |"]
    for column in ("variant", "median, s", "f_grpo / variant", "target"):
        table.add_column(column)
    for name, value in median.items():
        row = (name, f"{value:.3f}", f"{median['f_grpo'] / value:.2f}", targets.get(name, ""))
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    Console().print(table)
    if output is not None:
        output.write_text(f"{title}; {device}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
