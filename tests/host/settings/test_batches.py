"""Rows, ranks and micro-batches that fit together, and those that do not."""

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import MICRO, REFERENCE, STATIC, SWITCH


def test_micro_batches_that_divide_each_ranks_rows_are_taken(stock_config, inputs):
    """And a batch that is no whole number of mini-batches, which the host fills up before its log-prob passes."""
    for overrides in (
        [*STATIC, f"{MICRO}=4", f"{REFERENCE}=8", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"],
        ["data.train_batch_size=300", f"{REFERENCE}=128", "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false"],
    ):
        complete(stock_config(*inputs, SWITCH, *overrides))
