"""Rows and micro-batches as a worker gets them, and a loss through verl's own ``ppo_loss``."""

from functools import partial

import numpy as np
import torch
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver.rows import row_numbers
from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig

BETA = 0.3


def actor_config(**settings):
    from verl.workers.config import FSDPActorConfig

    policy_loss = FDivergencePolicyLossConfig(loss_mode="f_grpo", f_divergence=FDivergenceConfig(**settings))
    return FSDPActorConfig(
        strategy="fsdp2", ppo_micro_batch_size_per_gpu=4, rollout_n=4, policy_loss=policy_loss, use_torch_compile=False
    )


def loss_rows(n=12, seed=0, gamma_old=False):
    """Rows as verl's queue holds them: nested, each of its own length, two of them fully masked."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (n,), generator=generator).tolist()
    prompts = torch.randint(1, 4, (n,), generator=generator).tolist()
    masks = [torch.ones(length, dtype=torch.int64) for length in lengths]
    masks[3][-1] = 0  # a masked token inside a row
    masks[7][:] = 0  # a row that verl has masked altogether

    def tokens():
        return [-torch.rand(length, generator=generator) for length in lengths]

    nested = lambda rows: torch.nested.as_nested_tensor(rows, layout=torch.jagged)  # noqa: E731
    rewards = (torch.rand(n, generator=generator) > 0.5).float()
    rewards[0], rewards[1] = 0.0, 1.0
    uids = np.array([f"prompt{i // 4}" for i in range(n)], dtype=object)
    old, ref = tokens(), tokens()
    return dict(
        lengths=lengths,
        prompts=nested([torch.ones(p, dtype=torch.int64) for p in prompts]),
        responses=nested([torch.ones(length, dtype=torch.int64) for length in lengths]),
        response_mask=nested(masks),
        old_log_probs=nested(old),
        ref_log_prob=nested(ref),
        prompt_lengths=prompts,
        masks=masks,
        old=old,
        ref=ref,
        rewards=rewards,
        uids=uids,
        log_prob=[
            (-torch.rand(p + length, generator=generator)).requires_grad_()
            for p, length in zip(prompts, lengths, strict=True)
        ],
    )


def micro_batch(rows, settings, select, minibatch):
    """The micro-batch that a worker gets, with the numbers that the driver attaches."""
    padded = lambda values: torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # noqa: E731
    numbers, _ = row_numbers(
        rewards=rows["rewards"],
        uids=rows["uids"],
        response_mask=padded(rows["masks"]),
        old_log_prob=padded(rows["old"]),
        minibatch=minibatch,
        padding=torch.zeros(len(minibatch), dtype=torch.bool),
        settings=settings,
        normalize_by_std=True,
    )
    nested = lambda values: torch.nested.as_nested_tensor([values[i] for i in select], layout=torch.jagged)  # noqa: E731
    fields = {
        "prompts": nested(rows["prompts"].unbind()),
        "responses": nested(rows["responses"].unbind()),
        "response_mask": nested(rows["masks"]),
        "old_log_probs": nested(rows["old"]),
        "ref_log_prob": nested(rows["ref"]),
        "advantages": nested([torch.full((length,), 9.0) for length in rows["lengths"]]),  # must not be read
        **{name: values[select] for name, values in numbers.items()},
    }
    return TensorDict(fields, batch_size=len(select))


def run_loss(rows, config, splits, dp_size=1, minibatch=None):
    """Sum of verl's ``ppo_loss`` over micro-batches, its metrics, and the gradient."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils import losses

    loss_fn = partial(losses.ppo_loss, config=config)
    total, metrics = 0.0, []
    for row in rows["log_prob"]:
        row.grad = None
    minibatch = torch.zeros(len(rows["lengths"]), dtype=torch.int64) if minibatch is None else minibatch
    for select in splits:
        data = micro_batch(rows, config.policy_loss.f_divergence, select, minibatch)
        tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=10**6, global_batch_size=10**6)
        values = torch.cat([rows["log_prob"][i] for i in select])
        offsets = torch.tensor([0, *np.cumsum([len(rows["log_prob"][i]) for i in select])])
        log_probs = torch.nested.nested_tensor_from_jagged(values, offsets=offsets)
        loss, extra = loss_fn(model_output={"log_probs": log_probs}, data=data)
        loss.backward()
        total += loss.item()
        metrics.append(extra)
    return total, metrics, torch.cat([row.grad for row in rows["log_prob"]])


def loss_arguments(rows=3, tokens=4, seed=0, **settings):
    """What verl's ``ppo_loss`` hands to our f-GRPO loss for a micro-batch; advantages are 1 and -1 in turn."""
    generator = torch.Generator().manual_seed(seed)
    log_prob, old, reference = (-torch.rand(rows, tokens, generator=generator) for _ in range(3))
    config = actor_config(**settings)
    config.global_batch_info["dp_size"] = 1
    sides = torch.tensor([1.0 - 2.0 * (row % 2) for row in range(rows)])
    return {
        "old_log_prob": old,
        "log_prob": log_prob.requires_grad_(),
        "advantages": torch.zeros(rows, tokens),
        "response_mask": torch.ones(rows, tokens, dtype=torch.int64),
        "config": config,
        "ref_log_prob": reference,
        "f_divergence_advantage": sides,
        "f_divergence_weight": torch.ones(rows),
        "f_divergence_count": torch.full((rows,), float(rows)),
        "f_divergence_fresh": torch.ones(rows),
    }
