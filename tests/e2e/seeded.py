"""Loaded into verl by tests: each answer is drawn with a seed of its own, so runs of any engine draw the same ones.

verl seeds each rollout replica as a whole, and what it draws then depends on how requests meet in its batches. A LoRA
adapter's first weights it does not seed.
"""

from collections import Counter

import wrapt


@wrapt.when_imported("verl.workers.rollout.llm_server")
def _patch(module) -> None:
    asked: Counter[tuple[int, ...]] = Counter()

    def generate(wrapped, instance, args, kwargs):
        prompt = tuple(kwargs["prompt_ids"])
        asked[prompt] += 1
        seed = hash((prompt, asked[prompt])) % 2**31  # of integers: the same in every process
        return wrapped(*args, **{**kwargs, "sampling_params": {**kwargs["sampling_params"], "seed": seed}})

    wrapt.wrap_function_wrapper(module, "LLMServerClient.generate", generate)


@wrapt.when_imported("verl.workers.engine.fsdp.transformer_impl")
def _seed_adapters(module) -> None:
    def build(wrapped, instance, args, kwargs):
        import torch

        torch.manual_seed(0)
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "FSDPEngine._build_lora_module", build)
