"""Another loss in our place is noticed."""

import pytest

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig
from tests.support.micro_batches import actor_config, loss_rows, run_loss


def test_a_loss_that_took_our_place_is_noticed_in_the_worker(monkeypatch):
    from verl.trainer.ppo import core_algos

    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "f_grpo", core_algos.compute_policy_loss_vanilla)
    with pytest.raises(RuntimeError, match="in place of our loss"):
        run_loss(loss_rows(), actor_config(), [list(range(12))])
    with pytest.raises(ValueError, match="has replaced ours"):
        FDivergencePolicyLossConfig(loss_mode="vanilla")
    with pytest.raises(RuntimeError, match="another loss"):
        divide_sums({"actor/pg_loss": 1.0}, FDivergenceConfig(divergence="kl"), lam=0.0, compare_rollout=True)
