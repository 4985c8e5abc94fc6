"""Settings that contradict one another are refused."""

import pytest

from tests.plan.planning import setup


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"engine": "deepspeed"}, "engine 'deepspeed' is not one of fsdp, fsdp2, megatron"),
        ({"tp": 2}, "belong to Megatron"),
        ({"engine": "megatron", "sp": 2}, "belong to FSDP"),
        ({"engine": "megatron", "tp": 4, "pp": 3}, "does not divide the 8 GPUs"),
        ({"engine": "megatron", "pp": 8}, r"pp \* virtual pp = 8 does not divide the 28 layers of Qwen/Qwen2.5-7B"),
        ({"engine": "megatron", "pp": 4, "virtual_pp": 2}, r"pp \* virtual pp = 8 does not divide the 28 layers"),
        ({"engine": "megatron", "tp": 16}, "tp 16 does not divide the 28 attention heads"),
        ({"engine": "megatron", "ep": 2}, "needs a model whose number of experts"),
        ({"rollout_tp": 7}, "rollout tp = 7 does not divide the 8 GPUs"),
        ({"rollout_tp": 8}, "rollout tp 8 does not divide the 28 attention heads"),
        ({"prompts": 100, "minibatch": 64}, "minibatch 64 does not divide the 100 prompts"),
        ({"response_length": 32768}, "33280 tokens exceeds the 16384 of a micro-batch .*--tokens-per-gpu"),
        ({"dtype": "int4"}, "dtype 'int4' is not one of"),
        ({"mean_response": 1025}, "mean response 1025 is more than the longest, 1024"),
        ({"mean_prompt": 600}, "mean prompt 600 is more than the longest, 512"),
        ({"lam": 0.5, "preference_rows": 100}, "preference rows 100 must be a multiple of 16"),
        ({"lam": 2.0}, "lambda 2.0 must lie"),
        ({"utilization": 1.5}, "gpu_memory_utilization 1.5"),
        ({"group": 0}, "group 0 must be a whole number >= 1"),
    ],
)
def test_contradictions_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        setup(**changes)
