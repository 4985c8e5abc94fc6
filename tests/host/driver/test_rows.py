"""What the driver attaches to rows, and where each row is trained."""

import pytest
import torch
from tensordict import TensorDict

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver.rows import minibatch_of_row
from tests.support.micro_batches import loss_rows, micro_batch


def test_minibatch_of_row_is_where_the_hosts_iterator_puts_it():
    from verl.utils import tensordict_utils as tu

    rows, per_minibatch, dp_size = 24, 8, 2
    expected = torch.empty(rows, dtype=torch.int64)
    for rank, share in enumerate(torch.arange(rows).chunk(dp_size)):
        data = TensorDict({"row": share}, batch_size=len(share))
        iterator = tu.make_iterator(
            data, mini_batch_size=per_minibatch // dp_size, epochs=1, seed=rank, dataloader_kwargs={"shuffle": False}
        )
        for index, batch in enumerate(iterator):
            expected[batch["row"]] = index
    assert torch.equal(minibatch_of_row(rows, per_minibatch, dp_size), expected)


def test_denominators_count_each_minibatch_apart():
    rows = loss_rows()
    minibatch = torch.tensor([0] * 6 + [1] * 6)
    data = micro_batch(rows, FDivergenceConfig(), list(range(12)), minibatch)
    assert data["f_divergence_count"].tolist() == [6.0] * 6 + [5.0] * 6  # row 7 is fully masked
    assert data["f_divergence_fresh"].tolist() == [1.0] * 6 + [0.0] * 6
    tokens = micro_batch(rows, FDivergenceConfig(level="token"), list(range(12)), minibatch)["f_divergence_count"]
    assert tokens[0] == sum(int(mask.sum()) for mask in rows["masks"][:6])


def test_several_outputs_of_one_session_are_refused():
    from fgrpo_plugin.host.driver.rows import refuse_several_outputs

    refuse_several_outputs(["uid_0_0", "uid_1_0", "pad12_3_0"])
    with pytest.raises(ValueError, match="one output a session"):
        refuse_several_outputs(["uid_0_0", "uid_0_1"])


@pytest.mark.parametrize("reward", [float("nan"), float("-inf"), 1e30])
def test_a_reward_of_which_no_advantage_can_be_made_is_refused_with_its_prompt(reward):
    """Of an agent loop that rewards by itself; verl's reward workers refuse theirs before."""
    rows = loss_rows()
    rows["rewards"][6] = reward
    with pytest.raises(
        ValueError, match=r"a response to prompt prompt1 has the reward (nan|-inf|1\.0+\d*e\+30), which is"
    ):
        micro_batch(rows, FDivergenceConfig(), list(range(12)), torch.zeros(12, dtype=torch.int64))


def test_the_largest_reward_that_is_taken_leaves_finite_numbers():
    from fgrpo_plugin.host.settings.rewards import LARGEST_REWARD

    rows = loss_rows()
    rows["rewards"][6] = LARGEST_REWARD
    for weighting in ("none", "softmax"):
        settings = FDivergenceConfig(weighting=weighting)
        data = micro_batch(rows, settings, list(range(12)), torch.zeros(12, dtype=torch.int64))
        assert (
            torch.isfinite(data["f_divergence_advantage"]).all() and torch.isfinite(data["f_divergence_weight"]).all()
        )
        assert data["f_divergence_advantage"][6] == pytest.approx(1.5) and data["f_divergence_weight"][6] == 1
