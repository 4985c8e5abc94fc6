"""Rows of a log-prob pass are whole micro-batches on every rank."""

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.driver.log_probs import log_prob_multiple


def config(nodes, gpus, ref, rollout, ref_dynamic=False, rollout_dynamic=False):
    def section(size, dynamic):
        return {"log_prob_micro_batch_size_per_gpu": size, "log_prob_use_dynamic_bsz": dynamic}

    return OmegaConf.create(
        {
            "actor_rollout_ref": {"ref": section(ref, ref_dynamic), "rollout": section(rollout, rollout_dynamic)},
            "trainer": {"nnodes": nodes, "n_gpus_per_node": gpus},
        }
    )


@pytest.mark.parametrize(
    ("given", "multiple"),
    [
        ((1, 1, 4, 6), 12),  # the least that both micro-batches divide
        ((2, 8, 4, 2), 64),  # on each of 16 GPUs
        ((1, 2, None, None), 2),  # no micro-batch asked for: one row on each
        ((1, 2, 4, 6, True, False), 12),  # dynamic batches take any number of rows
        ((1, 2, 4, 6, True, True), 2),
    ],
)
def test_rows_are_a_multiple_of_every_ranks_micro_batches(given, multiple):
    assert log_prob_multiple(config(*given)) == multiple
