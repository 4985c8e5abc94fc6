"""verl's own actor worker in this process, on a small random model: what benchmarks time and tests compare.

Import it before verl. Without Ray, vLLM and TransferQueue: rows are handed to the worker as the queue would hand them.
"""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ["VERL_PLATFORM"] = "cpu"

import verl  # noqa: F401  (loads the plugin)
from hydra import compose, initialize_config_module
from tensordict import TensorDict

GROUP = 4


def join_process_group(rank: int = 0, ranks: int = 1, port: int | None = None) -> None:
    """What Ray tells a worker about its process group, in the environment; the worker itself starts the group."""
    port = free_port() if port is None else port
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0", RAY_LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def config(folder: str, *overrides: str, group: str = "cpu") -> Any:
    """The stock configuration, completed as ``main_ppo`` would; without a GPU, with this config group of ours."""
    from fgrpo_plugin.host.settings.reading import is_f_divergence
    from fgrpo_plugin.host.settings.switch import complete

    parts = ("actor", "ref")
    device = [f"actor_rollout_ref.{part}.strategy=fsdp2" for part in parts] if torch.cuda.is_available() else []
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose(
            "ppo_trainer",
            [
                *(device or [f"+fgrpo={group}"]),
                f"actor_rollout_ref.model.path={folder}",
                f"data.train_files={folder}/rows.parquet",
                f"data.val_files={folder}/rows.parquet",
                "actor_rollout_ref.rollout.name=vllm",
                f"actor_rollout_ref.rollout.n={GROUP}",
                *overrides,
            ],
        )
    if is_f_divergence(composed):
        complete(composed)
    return composed


def make_model(
    folder: str,
    layers: int,
    hidden: int,
    key_value_heads: int = 4,
    family: str = "Qwen2",
    pairs: int = 128,
    **settings: Any,
) -> None:
    """A random model, prompts and preference data, so that the configuration names things that exist.

    Args:
        folder: where to.
        layers: of the transformer.
        hidden: width.
        key_value_heads: 1, 2 or 4, for 4 query heads.
        family: whose architecture.
        pairs: of preference data.
        settings: further ones of the family's configuration.
    """
    import transformers

    from fgrpo_plugin.quickstart.model import build_tokenizer

    tokenizer = build_tokenizer()
    shape = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=4096,
        **settings,
    )
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_data(folder, pairs)


def make_data(folder: str, pairs: int = 128) -> None:
    """Prompts and preference data, of which a configuration wants to see that they exist."""
    import pandas as pd

    row = {"prompt": [{"role": "user", "content": "1+1="}], "data_source": "openai/gsm8k"}
    rows = [{**row, "reward_model": {"style": "rule", "ground_truth": "2"}}] * 1024  # a batch of verl's default size
    pd.DataFrame(rows).to_parquet(f"{folder}/rows.parquet")
    preferences = pd.DataFrame([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * pairs)
    preferences.to_json(f"{folder}/pairs.jsonl", orient="records", lines=True)


def f_hal(folder: str) -> list[str]:
    """Overrides that select f-HAL with the preference data of `make_model`."""
    return ["algorithm.adv_estimator=f_hal", f"+data.preference.files=[{folder}/pairs.jsonl]"]


def nested(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """One component a row, as verl's queue holds them."""
    return torch.nested.as_nested_tensor(list(values), layout=torch.jagged)


def make_rows(prompts: Sequence[int], responses: Sequence[int], seed: int = 0) -> TensorDict:
    """Rows as verl's queue hands them to a worker: nested, with random tokens and binary rewards.

    Args:
        prompts: tokens of each row's prompt.
        responses: tokens of each row's response.
        seed: of tokens, log-probs of the rollout and rewards.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, 200, (p + n,), generator=generator) for p, n in zip(prompts, responses, strict=True)]
    ones = [torch.ones(n, dtype=torch.int64) for n in responses]
    rows = list(zip(tokens, prompts, strict=True))
    return TensorDict(
        {
            "prompts": nested(row[:p] for row, p in rows),
            "responses": nested(row[p:] for row, p in rows),
            "input_ids": nested(tokens),
            "position_ids": nested(torch.arange(len(row)) for row in tokens),
            "response_mask": nested(ones),
            "loss_mask": nested(
                torch.cat([torch.zeros(p, dtype=torch.int64), mask]) for p, mask in zip(prompts, ones, strict=True)
            ),
            "rollout_log_probs": nested(-torch.rand(n, generator=generator) for n in responses),
            "rm_scores": (torch.rand(len(rows), generator=generator) > 0.5).float(),
        },
        batch_size=len(rows),
    )


def attach_advantages(data: TensorDict, settings: Any = None) -> None:
    """What the driver attaches before an update with one mini-batch, in place: each `GROUP` rows answer one prompt.

    Args:
        data: rows of `make_rows` with old_log_probs.
        settings: FDivergenceConfig, for f-GRPO's own numbers too; None for GRPO.
    """
    from fgrpo_plugin.advantages import group_advantages
    from fgrpo_plugin.host.driver.rows import minibatch_of_row, row_numbers

    rewards, rows = data["rm_scores"], len(data)
    uids = np.array([f"p{i // GROUP}" for i in range(rows)], dtype=object)
    advantages = group_advantages(rewards, uids)
    lengths = data["responses"].offsets().diff().tolist()
    data["advantages"] = nested(a.expand(n).clone() for a, n in zip(advantages, lengths, strict=True))
    if settings is None:
        return
    numbers, _ = row_numbers(
        rewards=rewards,
        uids=uids,
        response_mask=data["response_mask"].to_padded_tensor(0),
        old_log_prob=data["old_log_probs"].to_padded_tensor(0.0),
        minibatch=minibatch_of_row(rows, rows, 1),
        padding=torch.zeros(rows, dtype=torch.bool),
        settings=settings,
        normalize_by_std=True,
    )
    data.update(numbers)


def in_order(order: Sequence[tuple[str, int]], **sources: TensorDict) -> TensorDict:
    """Rows of several batches in one, as the queue returns them: their common fields, row (name, i) from sources[name].

    Args:
        order: as `fgrpo_plugin.host.driver.joining.joined_order` gives it.
        sources: batches of nested (one component a row) or plain fields.
    """
    names = set.intersection(*(set(source.keys()) for source in sources.values()))
    fields: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        columns = {source: batch[name].unbind() for source, batch in sources.items()}
        rows = [columns[source][index] for source, index in order]
        fields[name] = nested(rows) if next(iter(sources.values()))[name].is_nested else torch.stack(rows)
    return TensorDict(fields, batch_size=len(order))


def update(worker: Any, data: TensorDict, *, ranks: int = 1, temperature: float = 1.0) -> Any:
    """One optimiser step of an actor worker.

    Args:
        worker: ActorRolloutRefWorker with an actor.
        data: this rank's rows, all of them in one mini-batch.
        ranks: data-parallel size; every rank has as many rows.
        temperature: of the rollouts.
    """
    from verl.utils import tensordict_utils as tu

    data = data.copy()
    tu.assign_non_tensor(
        data,
        calculate_entropy=False,
        global_batch_size=len(data) * ranks,
        mini_batch_size=len(data) * ranks,
        epochs=1,
        seed=0,
        dataloader_kwargs={"shuffle": False},
        temperature=temperature,
    )
    return worker.update_actor(data)


def response_log_probs(compute: Callable, data: TensorDict, entropy: bool) -> torch.Tensor:
    """(n, T) log-probs of response tokens, nats, by a log-prob pass of a worker: nested, at temperature 1."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    batch = data.copy()
    tu.assign_non_tensor(batch, calculate_entropy=entropy, compute_loss=False, temperature=1.0)
    return response_from_nested(compute(batch)["log_probs"], data["response_mask"])
