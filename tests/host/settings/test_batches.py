"""Rows, ranks and micro-batches that fit together, and those that do not."""

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.settings.batches import minibatches_of_update, prompts_of_update
from fgrpo_plugin.host.settings.preferences import preference_rows_per_minibatch
from fgrpo_plugin.host.settings.switch import check_and_fill_in, complete
from tests.support.overrides import HAL, MICRO, REFERENCE, STATIC, SWITCH, F

ROLLOUT = "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"
ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
PACKED = "actor_rollout_ref.model.use_remove_padding=true"
SMALL = ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.n_gpus_per_node=1"]
LIMIT = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"
RELEASED = f"{F}.preset=released"  # gamma = 1: with two mini-batches the actor computes log pi_old
LORA = "actor_rollout_ref.model.lora_rank=8"


def test_micro_batches_that_divide_each_ranks_rows_are_taken(stock_config, inputs):
    """And a batch that is no whole number of mini-batches, which verl fills up before its log-prob passes."""
    for overrides in (
        [*STATIC, f"{MICRO}=4", f"{REFERENCE}=8", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"],
        ["data.train_batch_size=300", f"{REFERENCE}=128", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"],
        [*STATIC, *SMALL, f"{MICRO}=4", f"{ROLLOUT}=7"],  # no pass reads the rollout's size
        [*SMALL, "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=8"],
        # A limit of exactly the longest row, and one that two ranks along the sequence share.
        ["data.max_prompt_length=384", "data.max_response_length=16000"],
        [
            f"{ACTOR}.ulysses_sequence_parallel_size=2",
            PACKED,
            "data.max_prompt_length=768",
            "data.max_response_length=32000",
        ],
        # With an adapter verl starts no worker for the reference.
        [LORA, f"{REF}.log_prob_use_dynamic_bsz=false"],
        [LORA, f"{REFERENCE}=7", f"{REF}.log_prob_use_dynamic_bsz=false"],
    ):
        complete(stock_config(*inputs, SWITCH, *overrides))


@pytest.mark.parametrize(
    "overrides, words",
    [
        # Without a micro-batch verl's workers stop at an assertion.
        (["actor_rollout_ref.actor.use_dynamic_bsz=false"], f"{MICRO}=None must be a whole number above 0: the rows"),
        ([*STATIC, f"{MICRO}=4", f"{REFERENCE}=null"], f"{REFERENCE}=None must be a whole number above 0"),
        ([*STATIC, f"{MICRO}=4", f"{ROLLOUT}=null"], f"{ROLLOUT}=None must be a whole number above 0"),
        ([*STATIC, f"{MICRO}=0"], f"{MICRO}=0 must be a whole number above 0"),
        ([*STATIC, f"{MICRO}=-4"], f"{MICRO}=-4 must be a whole number above 0"),
        ([*STATIC, f"{MICRO}=2.5"], f"{MICRO}=2.5 must be a whole number above 0"),
        (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=null"], "ppo_max_token_len_per_gpu=None must be a whole"),
        # Keys of published scripts that verl's workers no longer read.
        (
            [*STATIC, "actor_rollout_ref.actor.ppo_micro_batch_size=64"],
            f"ppo_micro_batch_size=64 is an old key of verl, which counts rows of all GPUs and which its workers no "
            f"longer read; set {MICRO}=8 in its place",
        ),
        (
            [*STATIC, f"{MICRO}=4", "actor_rollout_ref.ref.log_prob_micro_batch_size=128"],
            f"set {REFERENCE}=16 in its place",
        ),
        (
            [*STATIC, f"{MICRO}=4", "actor_rollout_ref.rollout.log_prob_micro_batch_size=4"],
            f"set {ROLLOUT}=1 in its place",
        ),
        # verl's worker takes one switch for the actor and for its log-probs.
        (
            [*STATIC, f"{MICRO}=4", "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true"],
            "rollout.log_prob_use_dynamic_bsz=True differs from actor_rollout_ref.actor.use_dynamic_bsz=False",
        ),
        (
            ["actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false"],
            "rollout.log_prob_use_dynamic_bsz=False differs from actor_rollout_ref.actor.use_dynamic_bsz=True",
        ),
        # The pass for log pi_old has a micro-batch of its own.
        ([RELEASED, *STATIC, *SMALL, f"{MICRO}=4", f"{ROLLOUT}=7"], f"no multiple of {ROLLOUT}=7"),
        (
            [RELEASED, *SMALL, "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=8"],
            "rollout.log_prob_max_token_len_per_gpu=8 does not hold the longest row",
        ),
        # LoRA's reference is the actor without its adapter: computed by the rollout's section too.
        ([LORA, *STATIC, *SMALL, f"{MICRO}=4", f"{ROLLOUT}=7"], f"no multiple of {ROLLOUT}=7"),
        # A step of two updates has half of its rows in each.
        (
            [*STATIC, *SMALL, f"{MICRO}=4", f"{REFERENCE}=32", "+trainer.v1.sync.parameter_sync_step=2"],
            f"makes 16 rows on 1 data-parallel ranks, no multiple of {REFERENCE}=32",
        ),
        (
            [*SMALL, "+trainer.v1.sync.parameter_sync_step=3"],
            "data.train_batch_size=8 is no multiple of trainer.v1.sync.parameter_sync_step=3",
        ),
        ([*SMALL, "+trainer.v1.sync.parameter_sync_step=0"], "parameter_sync_step=0"),
        # The reference's ranks along the sequence are its own.
        (
            [*(f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=2", "data.max_response_length=24000"), PACKED],
            "ref.log_prob_max_token_len_per_gpu=16384 does not hold the longest row",
        ),
        (
            [
                *(f"{ACTOR}.ulysses_sequence_parallel_size=2", f"{REF}.ulysses_sequence_parallel_size=1", PACKED),
                *(f"{REF}.log_prob_use_dynamic_bsz=false", f"{REFERENCE}=1024"),
            ],
            f"4096 rows on 8 data-parallel ranks, no multiple of {REFERENCE}=1024 on each",
        ),
        # Each rank's rows count, not all of them.
        ([*STATIC, *SMALL[:2], "trainer.n_gpus_per_node=2", f"{MICRO}=16"], "makes 16 rows on 2 data-parallel ranks"),
    ],
)
def test_rows_that_make_no_micro_batches_are_refused_before_ray(stock_config, inputs, overrides, words):
    config = stock_config(*inputs, SWITCH, *overrides)
    with pytest.raises(ValueError) as error:
        check_and_fill_in(config)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            [f"{F}.lam=1", f"{REF}.log_prob_max_token_len_per_gpu=8"],
            "ref.log_prob_max_token_len_per_gpu=8 does not hold",
        ),
        ([f"{F}.lam=1", LORA, f"{LIMIT}=8"], "rollout.log_prob_max_token_len_per_gpu=8 does not hold"),
        (["++data.preference.val_files=[y]", f"{LIMIT}=8"], "rollout.log_prob_max_token_len_per_gpu=8 does not hold"),
        ([f"{LIMIT}=8"], None),
    ],
)
def test_preference_rows_pass_through_micro_batches_too(stock_config, inputs, overrides, words):
    start = ["++data.preference.files=[x]", "++data.preference.batch_size=16", "trainer.val_before_train=false"]
    config = stock_config(*inputs, HAL, *start, "trainer.test_freq=-1", "data.train_batch_size=256", *overrides)
    if words is None:
        check_and_fill_in(config)
        return
    with pytest.raises(ValueError, match=words):
        check_and_fill_in(config)


def test_an_old_key_is_answered_with_a_size_that_fits(stock_config, inputs):
    old = [f"{ACTOR}.ppo_micro_batch_size=24", f"{ACTOR}.ppo_mini_batch_size=8", "data.train_batch_size=8"]
    config = stock_config(*inputs, SWITCH, *STATIC, *old)
    with pytest.raises(ValueError, match=f"set {MICRO}=2 in its place"):  # 24 over 8 GPUs are 3, of 4 rows on each
        check_and_fill_in(config)


def test_the_held_out_pass_of_an_old_key_under_dynamic_batches_is_not_read(stock_config, inputs):
    check_and_fill_in(stock_config(*inputs, SWITCH, "actor_rollout_ref.actor.ppo_micro_batch_size=64"))


@pytest.mark.parametrize(
    "batch, minibatch, updates, prompts, steps",
    [(8, 4, 1, 8, 2), (10, 4, 1, 10, 3), (2, 8, 1, 2, 1), (8, 4, 2, 4, 1), (8, 2, 2, 4, 2)],
)
def test_prompts_and_optimiser_steps_of_an_update(stock_config, batch, minibatch, updates, prompts, steps):
    config = stock_config(
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={minibatch}",
        f"+trainer.v1.sync.parameter_sync_step={updates}",
    )
    assert prompts_of_update(config) == prompts and minibatches_of_update(config) == steps


@pytest.mark.parametrize("batch, minibatch, rows", [(8, 4, 16), (2, 8, 8), (8, 8, 32)])
def test_as_many_preference_rows_as_there_are_on_policy_rows(stock_config, batch, minibatch, rows):
    """A mini-batch that is larger than the batch is filled up with repeated rows, which do not count."""
    config = stock_config(
        HAL,
        "+data.preference.files=[x]",
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={minibatch}",
        "actor_rollout_ref.rollout.n=4",
    )
    assert preference_rows_per_minibatch(config) == rows
    OmegaConf.update(config, "data.preference.batch_size", 6, force_add=True)
    assert preference_rows_per_minibatch(config) == 6
