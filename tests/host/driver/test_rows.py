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
