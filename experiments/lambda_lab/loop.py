"""One run of f-HAL on the tiny model: the package's losses in a plain torch loop, without verl.

Shapes: n rows (responses), P prompt tokens (all prompts are of one length), T response tokens, padded on the right.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM, get_cosine_schedule_with_warmup

from fgrpo_plugin.advantages import group_advantages, group_weights
from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.losses import (
    f_grpo_loss,
    f_hal_loss,
    fdo_loss,
    implicit_reward,
    row_slopes,
)
from fgrpo_plugin.preference.tokens import encode
from fgrpo_plugin.quickstart import hybrid, task
from fgrpo_plugin.quickstart.model import Example, build_model, build_tokenizer, save_model, warm_up

PROMPT_LENGTH = 7
RESPONSE_LENGTH = 8
EVALUATION_DRAWS = 8


@dataclass(frozen=True)
class Settings:
    """What tuning may change; the defaults are those of the reported sweep. The task is not among them."""

    divergence: str = "kl"
    beta: float = 0.1
    preset: str = "stable"
    scale: Any = None
    """As in `FDivergenceConfig`; None takes the preset's."""
    weighting: str = "softmax_is"
    steps: int = 90
    prompts: int = 16
    """Prompts a step, on-policy."""
    group: int = 8
    """Responses a prompt."""
    preference_pairs: int = 32
    """Preference pairs a step."""
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    clip_grad: float = 1.0

    def losses(self, lam: float) -> FDivergenceConfig:
        """The settings of the losses at one lambda.

        Raises:
            ValueError: a value out of its range.
        """
        return FDivergenceConfig(
            preset=self.preset,
            divergence=self.divergence,
            beta=self.beta,
            scale=self.scale,
            weighting=self.weighting,
            lam=lam,
        )


@dataclass(frozen=True)
class Rollouts:
    """Responses of the policy: (n, P) and (n, T) token ids, (n, T) mask, and (n,) proxy, judge, group and texts."""

    prompts: torch.Tensor
    responses: torch.Tensor
    mask: torch.Tensor
    rewards: torch.Tensor
    true_rewards: torch.Tensor
    groups: torch.Tensor
    texts: list[str]


@dataclass(frozen=True)
class Preferences:
    """Rows of both sides: (n, P) and (n, T) token ids, (n, T) mask, (n,) bool."""

    prompts: torch.Tensor
    responses: torch.Tensor
    mask: torch.Tensor
    desirable: torch.Tensor


def warm_model(seed: int, cache: Path) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """The warmed-up model of a seed, the start of every run and its reference; made once and then read from `cache`."""
    folder = cache / f"seed-{seed}"
    tokenizer = build_tokenizer()
    if not (folder / "config.json").is_file():
        model = build_model(tokenizer, seed)
        train, _ = task.split_pairs()
        warm_up(
            model,
            tokenizer,
            [Example(pair.prompt, pair.answer) for pair in train],
            seed=seed,
            wrong_answer=hybrid.wrong_answer,
            target_success=hybrid.WARM_UP_SUCCESS,
        )
        save_model(model, tokenizer, folder)
    return Qwen2ForCausalLM.from_pretrained(folder).eval(), tokenizer


@torch.no_grad()
def respond(
    policy: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[task.Pair],
    draws: int,
    seed: int | None,
) -> Rollouts:
    """Sample `draws` responses a prompt at temperature 1, or one greedily where `seed` is None, and judge them.

    Rows of one prompt lie together and are one group.
    """
    rendered = tokenizer.apply_chat_template(
        [[{"role": "user", "content": pair.prompt}] for pair in pairs], tokenize=False, add_generation_prompt=True
    )
    prompts = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
    choice: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": draws}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        ids = policy.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=RESPONSE_LENGTH, **choice
        )
    prompts, responses = ids[:, :PROMPT_LENGTH], ids[:, PROMPT_LENGTH:]
    is_end = responses == tokenizer.eos_token_id
    mask = (is_end.cumsum(dim=1) - is_end.long()) == 0
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    each = len(texts) // len(pairs)
    scores = [hybrid.proxy_reward(task.DATA_SOURCE, text, pairs[row // each].answer) for row, text in enumerate(texts)]
    return Rollouts(
        prompts,
        responses,
        mask,
        rewards=torch.tensor([score["score"] for score in scores]),
        true_rewards=torch.tensor([score["true_reward"] for score in scores]),
        groups=torch.arange(len(pairs)).repeat_interleave(each),
        texts=texts,
    )


def rollouts(
    policy: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, settings: Settings, seed: int
) -> Iterator[Rollouts]:
    """Without end: groups of responses of the policy as it is then, on random training prompts."""
    train, _ = task.split_pairs()
    rng = random.Random(seed)
    while True:
        yield respond(policy, tokenizer, rng.sample(train, settings.prompts), settings.group, rng.getrandbits(32))


def preferences(tokenizer: PreTrainedTokenizerBase, settings: Settings, seed: int) -> Iterator[Preferences]:
    """Without end: random preference pairs, shuffled anew when all have been seen."""
    rows = encode(
        hybrid.preference_rows(), tokenizer, max_prompt_length=PROMPT_LENGTH, max_response_length=RESPONSE_LENGTH
    ).rows
    prompts = torch.tensor([row.prompt_ids for row in rows])
    lengths = torch.tensor([len(row.response_ids) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    responses = torch.full(mask.shape, tokenizer.pad_token_id)
    responses[mask] = torch.tensor([token for row in rows for token in row.response_ids])
    desirable = torch.tensor([row.desirable for row in rows])

    rng = random.Random(seed)
    waiting: list[int] = []  # pairs: rows 2i and 2i + 1
    while True:
        if len(waiting) < settings.preference_pairs:
            again = list(range(len(rows) // 2))
            rng.shuffle(again)
            waiting += again
        drawn, waiting = waiting[: settings.preference_pairs], waiting[settings.preference_pairs :]
        index = torch.tensor([row for pair in drawn for row in (2 * pair, 2 * pair + 1)])
        yield Preferences(prompts[index], responses[index], mask[index], desirable[index])


def token_log_probs(model: nn.Module, prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """log pi of each response token, (n, T), in nats. Padding is on the right, so causal attention needs no mask."""
    logits = model(input_ids=torch.cat([prompts, responses], dim=1)).logits[:, prompts.shape[1] - 1 : -1].float()
    return -nn.functional.cross_entropy(logits.transpose(1, 2), responses, reduction="none")


def hybrid_loss(
    policy: nn.Module,
    reference: nn.Module,
    config: FDivergenceConfig,
    on_policy: Rollouts | None,
    preference: Preferences | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """s_all (lambda L_FDO + (1 - lambda) s_on L_fGRPO); a half that lambda leaves out may be None.

    Returns:
        The loss, a scalar, and what docs/lambda.md is about: on_policy_slope and preference_slope (the sums of
        |dL/dr| (beta + gamma) of both halves as they enter the loss) and q (mean |a| w of the paper's weights over that
        of `stable`'s), each of the halves that are there.
    """
    assert config.gamma is not None
    divergence = config.build_divergence()
    s_all, s_on = config.scales()
    on_policy_loss = preference_loss = torch.zeros(())
    measured: dict[str, float] = {}

    def rewarded(rows: Rollouts | Preferences, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
        log_prob = token_log_probs(policy, rows.prompts, rows.responses)
        with torch.no_grad():
            ref_log_prob = token_log_probs(reference, rows.prompts, rows.responses)
        old_log_prob = log_prob.detach()  # one optimiser step a batch, so the sampler was the policy as it is
        reward = implicit_reward(
            log_prob, ref_log_prob, rows.mask, config.beta, old_log_prob=old_log_prob, gamma=gamma, level=config.level
        )
        return reward, old_log_prob

    def weights_of(rows: Rollouts, old_log_prob: torch.Tensor, scale: str, level: str) -> torch.Tensor:
        return group_weights(
            rows.rewards,
            rows.groups,
            config.weighting,
            old_log_prob,
            rows.mask,
            config.weight_cap,
            weight_temperature=config.weight_temperature,
            old_log_prob_level=level,
            weight_scale=scale,
        )

    if on_policy is not None:
        assert config.weight_scale is not None and config.weight_level is not None
        reward, old_log_prob = rewarded(on_policy, config.gamma)
        weights = weights_of(on_policy, old_log_prob, config.weight_scale, config.weight_level)
        advantages = group_advantages(on_policy.rewards, on_policy.groups)
        on_policy_loss = f_grpo_loss(reward, advantages, divergence, weights, response_mask=on_policy.mask)
        scale = s_all * (1 - config.lam) * s_on * (config.beta + config.gamma)
        measured["on_policy_slope"] = scale * row_slopes(on_policy_loss, reward).sum().item()
        carried = [
            (advantages.abs() * weights_of(on_policy, old_log_prob, *setting)).mean().item()
            for setting in (("group", "sequence"), ("side", "token_mean"))
        ]
        measured["q"] = carried[0] / carried[1] if carried[1] else float("nan")
    if preference is not None:
        reward, _ = rewarded(preference, 0.0)
        preference_loss = fdo_loss(reward, preference.desirable, divergence, response_mask=preference.mask)
        measured["preference_slope"] = (
            s_all * config.lam * config.beta * row_slopes(preference_loss, reward).sum().item()
        )
    return s_all * f_hal_loss(preference_loss, s_on * on_policy_loss, config.lam), measured


def train(
    policy: nn.Module,
    reference: nn.Module,
    settings: Settings,
    lam: float,
    on_policy: Iterator[Rollouts],
    preference: Iterator[Preferences],
    on_step: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Train in place. At lambda = 0 nothing is taken from `preference`, at lambda = 1 nothing from `on_policy`.

    Returns:
        Curves, one number a step: loss, grad_norm (before clipping), what `hybrid_loss` measures and, where responses
        are drawn, their mean proxy and true reward.
    """
    config = settings.losses(lam)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    curves: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for step in range(settings.steps):
        drawn = next(on_policy) if lam < 1 else None
        preferred = next(preference) if lam > 0 else None
        loss, measured = hybrid_loss(policy, reference, config, drawn, preferred)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(policy.parameters(), settings.clip_grad)
        optimizer.step()
        schedule.step()
        curves["loss"].append(loss.item())
        curves["grad_norm"].append(norm.item())
        for name, value in measured.items():
            curves.setdefault(name, []).append(value)
        if drawn is not None:
            curves.setdefault("proxy", []).append(drawn.rewards.mean().item())
            curves.setdefault("true", []).append(drawn.true_rewards.mean().item())
        if on_step is not None:
            on_step(step + 1)
    return curves


def evaluate(policy: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Means over the held-out prompts, sampled at temperature 1 (eight responses a prompt, fixed draws) and greedy.

    Returns:
        proxy, true and confident (share of responses with a confident ending), each plain and with the suffix _greedy.
    """
    found = {}
    for suffix, seed in (("", 0), ("_greedy", None)):
        answers = respond(policy, tokenizer, task.heldout_sample(), EVALUATION_DRAWS, seed)
        found["proxy" + suffix] = answers.rewards.mean().item()
        found["true" + suffix] = answers.true_rewards.mean().item()
        confident = [text.strip().endswith(hybrid.CONFIDENT) for text in answers.texts]
        found["confident" + suffix] = sum(confident) / len(confident)
    return found


def run(
    settings: Settings, lam: float, seed: int, cache: Path, on_step: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """One run from the seed's warmed-up model: {before, after, curves}. Depends on the arguments alone."""
    policy, tokenizer = warm_model(seed, cache)
    reference, _ = warm_model(seed, cache)
    before = evaluate(policy, tokenizer)
    curves = train(
        policy,
        reference,
        settings,
        lam,
        rollouts(policy, tokenizer, settings, seed),
        preferences(tokenizer, settings, seed),
        on_step,
    )
    return {"before": before, "after": evaluate(policy, tokenizer), "curves": curves}
