"""What test_patches.py runs in a process of its own, in which verl is the patched copy and no plugin is loaded.

Prints the largest difference between verl's f-GRPO and f-HAL (patches 0006 and 0007) and this package's losses, by
divergence, with the sizes of the mini-batch filled in as verl's `ppo_loss` fills them.
"""

import json
from typing import Any

import numpy as np
import torch
import verl
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.f_divergence import F_DIVERGENCES, get_f_divergence_link
from verl.workers.config import ActorConfig, PolicyLossConfig

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.divergences import available_divergences, get_divergence
from fgrpo_plugin.losses import f_grpo_loss, f_hal_loss, fdo_loss, implicit_reward

ROWS, TOKENS = 24, 7
ALPHAS = (-1.0, 0.5, 3.0)
LEVELS = ("sequence", "sequence_mean", "token")
WEIGHTINGS = ("none", "softmax", "softmax_is")


def difference(ours: torch.Tensor, theirs: torch.Tensor, scale: float = 0.0) -> float:
    """Largest difference, relative to the largest number or to `scale`; infinite where either is not finite."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    assert ours.shape == theirs.shape and bool((ours != 0).any()), "nothing to compare"
    gap = (ours - theirs).abs().max() / ours.abs().max().clamp(min=scale)
    return gap.item() if bool(torch.isfinite(gap)) else float("inf")


def rows(size: float, empty: bool = False) -> dict[str, torch.Tensor]:
    """Log-probs whose ratio to the reference is of the given size a token, NaN where masked; one row may be empty."""
    generator = torch.Generator().manual_seed(int(size * 10))
    lengths = torch.randint(1, TOKENS + 1, (ROWS,), generator=generator)
    if empty:
        lengths[5] = 0
    mask = torch.arange(TOKENS) < lengths.unsqueeze(-1)
    log_prob = -torch.rand(ROWS, TOKENS, generator=generator)
    ref_log_prob = log_prob - size * torch.randn(ROWS, TOKENS, generator=generator)
    old_log_prob = log_prob + 0.3 * torch.randn(ROWS, TOKENS, generator=generator)
    return {
        "log_prob": log_prob.requires_grad_(),
        "ref_log_prob": torch.where(mask, ref_log_prob, torch.nan),
        "old_log_prob": old_log_prob,
        "mask": mask,
        "rewards": torch.randn(ROWS, generator=generator).round(decimals=1),
        "label": torch.tensor([0, 0, 1, -1]).repeat(ROWS // 4),
    }


def losses(batch: dict[str, torch.Tensor], divergence: Any, level: str, beta: float, lam: float) -> dict[str, float]:
    """Differences of both losses and of their gradients."""
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(
            f_grpo_divergence=divergence.name,
            f_grpo_link=divergence.link_name,
            f_grpo_alpha=divergence.alpha,
            f_grpo_beta=beta,
            f_grpo_level=level,
            f_hal_lambda=lam,
        ),
    )
    log_prob, mask, label = batch["log_prob"], batch["mask"], batch["label"]
    sizes = {"dp_size": 1, "batch_num_tokens": mask.sum(), "global_batch_size": ROWS, "loss_scale_factor": None}
    config.global_batch_info.update(sizes)
    # verl's mean over responses counts those without a token, this package's does not
    counted = 1.0 if level == "token" else mask.any(dim=-1).float().mean().item()
    advantage = group_advantages(batch["rewards"], torch.arange(ROWS) // 4)
    shared = (batch["old_log_prob"], log_prob, advantage.unsqueeze(-1) * mask, mask.float())
    fields = {"config": config, "ref_log_prob": batch["ref_log_prob"]}
    units = mask.sum(dim=-1) if level == "token" else mask.any(dim=-1).long()
    counts = {kind: units[label == kind].sum() for kind in (0, 1, -1)}
    theirs = {
        "f_grpo": core_algos.compute_policy_loss_f_grpo(*shared, **fields)[0],
        "f_hal": core_algos.compute_policy_loss_f_hal(
            *shared,
            **fields,
            preference_label=label,
            preference_label_count=torch.stack([counts[kind] for kind in label.tolist()]),
        )[0],
    }

    reward = implicit_reward(log_prob, batch["ref_log_prob"], mask, beta, level=level)
    on, off = label == 0, label != 0
    ours = {
        "f_grpo": counted * f_grpo_loss(reward, advantage, divergence, response_mask=mask),
        "f_hal": f_hal_loss(
            fdo_loss(reward[off], label[off] > 0, divergence, response_mask=mask[off]),
            f_grpo_loss(reward[on], advantage[on], divergence, response_mask=mask[on]),
            lam,
        ),
    }
    result = {}
    size = advantage.abs().mean().item()  # a loss is a mean of terms of this size and of both signs
    for name in ours:
        result[name] = difference(ours[name], theirs[name], size)
        gradients = [torch.autograd.grad(x[name], log_prob, retain_graph=True)[0] for x in (ours, theirs)]
        result[f"{name} gradient"] = difference(*gradients)
    return result


def estimator(batch: dict[str, torch.Tensor], weighting: str, by_std: bool) -> float:
    """Difference of verl's estimator from this package's advantages times its weights."""
    groups = np.arange(ROWS) // 4
    mask, rewards = batch["mask"], batch["rewards"].clone()
    rewards[:4] = 0.3  # a group without signal
    token_level_rewards = torch.zeros(ROWS, TOKENS)
    token_level_rewards[:, -1] = rewards
    theirs, _ = core_algos.compute_f_grpo_outcome_advantage(
        token_level_rewards,
        mask,
        index=np.array([f"prompt{group}" for group in groups], dtype=object),
        config={"f_grpo_weighting": weighting, "norm_adv_by_std_in_grpo": by_std},
        batch={"old_log_probs": batch["old_log_prob"]},
    )
    ours = group_advantages(rewards, groups, normalize_by_std=by_std) * group_weights(
        rewards, groups, weighting, old_log_prob=batch["old_log_prob"], response_mask=mask
    )
    return difference(ours.unsqueeze(-1) * mask, theirs)


def every_link() -> list[Any]:
    """Each of this package's divergences with each link that it has."""
    found = []
    for name in available_divergences():
        for alpha in ALPHAS if name == "alpha" else (None,):
            for link in ("variational", "density_ratio"):
                parameters = {} if alpha is None else {"alpha": alpha}
                try:
                    found.append(get_divergence(name, link, **parameters))
                except ValueError:  # refused here, so it must be there
                    try:
                        get_f_divergence_link(name, link, alpha)
                    except ValueError:
                        continue
                    raise AssertionError(f"verl has {name} with link {link}, which this package refuses") from None
    return found


def main() -> None:
    worst: dict[str, dict[str, float]] = {}
    for divergence in every_link():
        entry = worst.setdefault(divergence.name, {})
        for size, beta, empty in ((0.5, 0.3, False), (0.5, 0.3, True), (20.0, 1.0, True)):
            for level in LEVELS:  # the last size leaves the finite ranges
                for name, gap in losses(rows(size, empty), divergence, level, beta, lam=0.3).items():
                    entry[name] = max(entry.get(name, 0.0), gap)
    estimates = {f"{w}, std {s}": estimator(rows(0.5, True), w, s) for w in WEIGHTINGS for s in (True, False)}
    print(json.dumps({"host": verl.__file__, "names": [*F_DIVERGENCES, "alpha"], "losses": worst, "adv": estimates}))


if __name__ == "__main__":
    main()
