"""Loaded into the host by tests: each answer is drawn with a seed of its own, so runs of any engine draw the same ones.

The host seeds each rollout replica as a whole, and what it draws then depends on how requests meet in its batches.
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
