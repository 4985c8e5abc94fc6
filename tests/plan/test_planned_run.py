"""Settings that contradict one another are refused."""

import math
from dataclasses import replace

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
        ({"minibatch": 5, "group": 5}, "makes 25 rows, no multiple of the 8 data-parallel ranks"),
        ({"response_length": 32768}, "33280 tokens exceeds the 16384 of a micro-batch .*ppo_max_token_len_per_gpu"),
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


@pytest.mark.parametrize("prompts, minibatch", [(64, 48), (64, 64), (64, 100), (100, 8), (1, 256), (96, 48)])
@pytest.mark.parametrize("micro_rows", [None, 2])
def test_mini_batches_are_those_that_the_host_makes(prompts, minibatch, micro_rows):
    """verl adds rows of a few tokens until whole mini-batches are there (`_balance_batch`), then cuts."""
    group, dp = 4, 8
    rows = [1536] * (prompts * group)
    while len(rows) % (minibatch * group):
        rows.append(0)
    size = minibatch * group
    cut = [rows[at : at + size] for at in range(0, len(rows), size)]
    fixed = {} if micro_rows is None else {"dynamic_batch": False, "micro_rows": micro_rows}
    planned = setup(prompts=prompts, minibatch=minibatch, group=group, epochs=2, **fixed)
    assert planned.optimizer_steps == 2 * len(cut)
    assert planned.filling_rows == len(rows) - prompts * group
    assert planned.on_policy_rows == max(sum(row > 0 for row in batch) for batch in cut)
    tokens, count = planned.micro_batch()
    if micro_rows is not None:
        assert count == math.ceil(size / dp / micro_rows) and tokens == 1536 * min(
            2, math.ceil(planned.on_policy_rows / dp)
        )
    else:
        assert tokens == min(16384, math.ceil(planned.on_policy_rows / dp) * 1536)
    of_whole_batch, passes = replace(planned, log_prob_dynamic_batch=False).micro_batch(training=False)
    assert (of_whole_batch, passes) == (1536, math.ceil(len(rows) / dp))


def test_rows_of_mean_length_make_a_run_of_mean_lengths():
    planned = setup(mean_response=200)
    assert (planned.at_mean_lengths().prompt_length, planned.at_mean_lengths().response_length) == (512, 200)
    assert setup().at_mean_lengths() == setup()
