"""A tiny Qwen2 model with a byte-level tokenizer, and the supervision that gives it a first success rate."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The reserved tokens round the vocabulary up to a multiple of eight, so that tensor parallelism can split it.
SPECIAL_TOKENS = (PAD, START, END, *(f"<|reserved_{i}|>" for i in range(5)))

# One opening token, then the text itself: a prompt of two operands is seven tokens. The end of an assistant turn is
# Qwen's, because verl looks for <|im_end|> and a one-token newline in tokenizers of this family.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + '<|im_end|>\\n' }}"
    "{%- else -%}{{ '<|im_start|>' + message['content'] }}"
    "{%- endif -%}{%- endfor -%}"
)

# Half of the labels are wrong, so a sampled success of 0.5 is the ceiling of the warm-up.
WRONG_SHARE = 0.5
BATCH_SIZE = 256
# Both measured: below, learning takes minutes; above, some seeds do not leave the plateau of guessing digits.
LEARNING_RATE_MATRICES = 0.02
LEARNING_RATE_OTHERS = 2e-3
# Transformers' 0.02 is meant for wide models; at a width of 128 it costs a few hundred steps.
INITIALIZER_RANGE = 0.06
RAMP_STEPS = 50
PROBE_EVERY = 5
PROBE_ROWS = 512


@dataclass(frozen=True)
class Example:
    """A prompt and its right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class WarmUpResult:
    """How a warm-up ended."""

    steps: int
    seconds: float
    sampled_success: float
    """Probability that a response sampled at temperature 1 is the right answer, averaged over training prompts."""
    reached_target: bool


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges: token id = byte, then the special tokens."""
    alphabet = bytes_to_unicode()
    tokenizer = Tokenizer(BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (PAD, END)],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A fresh model of 0.36 million parameters."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Building a model draws from the global generator, which is the caller's: leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def save_model(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save model and tokenizer as one ordinary Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.fgrpo_quickstart = True  # by this it is known again as MODEL=
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of each example, the prompt rendered as verl renders it."""
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": example.prompt}] for example in examples],
        tokenize=False,
        add_generation_prompt=True,
    )
    answers = [example.answer + END for example in examples]
    return list(
        zip(
            tokenizer(prompts, add_special_tokens=False)["input_ids"],
            tokenizer(answers, add_special_tokens=False)["input_ids"],
            strict=True,
        )
    )


def _pad(rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded (B, T) ids and labels; labels are -100 outside the answer."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = [[*prompt, *answer] + [pad_token_id] * (width - len(prompt) - len(answer)) for prompt, answer in rows]
    labels = [[-100] * len(prompt) + answer + [-100] * (width - len(prompt) - len(answer)) for prompt, answer in rows]
    return torch.tensor(ids), torch.tensor(labels)


def _answer_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, T) log-probabilities of the targets, 0 outside the answer."""
    return -nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")


@torch.no_grad()
def _evaluate(model: nn.Module, rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> tuple[float, float]:
    model.eval()
    sampled, greedy = 0.0, 0
    for start in range(0, len(rows), BATCH_SIZE):
        ids, labels = _pad(rows[start : start + BATCH_SIZE], pad_token_id)
        logits = model(input_ids=ids).logits[:, :-1].float()
        targets = labels[:, 1:]
        sampled += _answer_log_probs(logits, targets).sum(dim=-1).exp().sum().item()
        greedy += int(((logits.argmax(dim=-1) == targets) | (targets == -100)).all(dim=-1).sum())
    return sampled / len(rows), greedy / len(rows)


def success_rates(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[float, float]:
    """(sampled, greedy) success: the mean probability that a response drawn at temperature 1 is exactly the right
    answer, and the share of prompts whose greedy response is.

    Both are exact and take one teacher-forced pass: nothing is drawn, and the greedy response is the right answer if
    and only if each of its tokens is the most likely one after those before it.
    """
    assert isinstance(tokenizer.pad_token_id, int)
    return _evaluate(model, _encode(tokenizer, examples), tokenizer.pad_token_id)


def warm_up(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    seed: int,
    wrong_answer: Callable[[str, random.Random], str],
    target_success: float = 0.32,
    max_steps: int = 600,
    max_seconds: float = math.inf,
    on_step: Callable[[int, float], None] | None = None,
) -> WarmUpResult:
    """Supervise until a response sampled at temperature 1 is right with probability `target_success`.

    Each label is wrong with probability one half, drawn anew every time, so that the model knows the task and still
    responds wrongly half of the time: reinforcement has something to do. The result depends on `seed`, not on the speed
    of the machine, unless `max_seconds` ends it.

    Args:
        model: trained in place.
        tokenizer: of the model.
        examples: prompts with right answers.
        seed: of the batches and of the wrong labels.
        wrong_answer: draws a wrong label for a right one.
        target_success: the probability at which to stop, probed every few steps; must be below one half.
        max_steps: most optimiser steps.
        max_seconds: most wall-clock time.
        on_step: called with the number of steps done and the last probed success.
    """
    assert isinstance(tokenizer.pad_token_id, int)
    rng = random.Random(seed)
    rows = _encode(tokenizer, examples)
    probe = rng.sample(rows, min(PROBE_ROWS, len(rows)))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    in_matrices = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_matrices]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=LEARNING_RATE_MATRICES, weight_decay=0.01), LEARNING_RATE_MATRICES),
        (torch.optim.AdamW(others, lr=LEARNING_RATE_OTHERS, betas=(0.9, 0.98)), LEARNING_RATE_OTHERS),
    ]

    started = time.monotonic()
    success, step = 0.0, 0
    while step < max_steps and time.monotonic() - started < max_seconds:
        model.train()
        batch = rng.choices(range(len(rows)), k=BATCH_SIZE)
        wrong = {
            index: wrong_answer(examples[row].answer, rng)
            for index, row in enumerate(batch)
            if rng.random() < WRONG_SHARE
        }
        wrong_ids = tokenizer([answer + END for answer in wrong.values()], add_special_tokens=False)["input_ids"]
        labelled = [rows[row] for row in batch]
        for index, answer_ids in zip(wrong, wrong_ids, strict=True):
            labelled[index] = (labelled[index][0], answer_ids)
        # No attention mask is needed: padding is on the right and attention is causal.
        ids, labels = _pad(labelled, tokenizer.pad_token_id)
        logits = model(input_ids=ids).logits[:, :-1].float()
        loss = -_answer_log_probs(logits, labels[:, 1:]).sum() / (labels != -100).sum()
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, learning_rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (step + 1) / RAMP_STEPS)
            optimizer.step()
        step += 1
        if step % PROBE_EVERY == 0:
            success, _ = _evaluate(model, probe, tokenizer.pad_token_id)
        if on_step is not None:
            on_step(step, success)
        if success >= target_success:
            break
    model.eval()
    return WarmUpResult(step, time.monotonic() - started, success, success >= target_success)
