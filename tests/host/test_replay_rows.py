"""The file of an update that was not finite: what goes in comes out, from micro-batches of any width."""

import pickle

import pytest
import torch

from fgrpo_plugin.host.replay_rows import FORMAT, TOKEN_FIELDS, NonFiniteUpdate, gather, pack, unpack


def part(rows, width, **more):
    fields = {name: torch.rand(rows, width) for name in TOKEN_FIELDS[:3]}
    mask = torch.ones(rows, width, dtype=torch.int64)
    return fields | {"response_mask": mask, "f_divergence_weight": torch.rand(rows), **more}


def test_micro_batches_of_any_width_come_one_after_the_other():
    parts = [part(2, 3), part(1, 5), part(3, 2)]
    found = gather(parts)
    start = 0
    for given in parts:
        rows, width = given["log_prob"].shape
        for name in TOKEN_FIELDS[:4]:
            assert torch.equal(found[name][start : start + rows, :width], given[name])
            assert not found[name][start : start + rows, width:].any()
        assert torch.equal(found["f_divergence_weight"][start : start + rows], given["f_divergence_weight"])
        start += rows
    assert found["log_prob"].shape == (6, 5)


def test_what_is_masked_is_0_and_a_preference_row_has_its_own_tokens():
    given = part(3, 4, f_divergence_side=torch.tensor([0.0, 1.0, -1.0]), f_divergence_tokens=torch.tensor([0.0, 2, 4]))
    given["response_mask"][:] = torch.tensor([[1, 0, 1, 0], [0] * 4, [0] * 4])
    given["log_prob"][0, 1] = float("nan")
    found = gather([given])["log_prob"]
    own = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert torch.equal(found != 0, own) and torch.equal(found[own], given["log_prob"][own])


def test_a_field_that_not_every_micro_batch_has_is_left_out():
    with_ids = part(1, 2, responses=torch.ones(1, 2, dtype=torch.int64))
    assert "responses" not in gather([with_ids, part(1, 2)])
    assert "responses" in gather([with_ids, with_ids])


def test_a_file_holds_rows_header_and_versions(tmp_path):
    rows = gather([part(2, 3)])
    file = tmp_path / "step_1_rank_0.safetensors"
    file.write_bytes(pack(rows, {"kind": "loss", "settings": {"beta": 0.1, "scale": [1.0, 2.0], "alpha": None}}))
    saved = unpack(file)
    assert (
        all(torch.equal(saved.rows[name], value) for name, value in rows.items()) and saved.rows.keys() == rows.keys()
    )
    assert saved.about.pop("versions").keys() == {"fgrpo-plugin", "torch", "verl"}
    expected = {"format": FORMAT, "kind": "loss", "settings": {"beta": 0.1, "scale": [1.0, 2.0], "alpha": None}}
    assert saved.about == expected


def test_the_error_goes_to_the_driver_whole():
    error = NonFiniteUpdate("it is NaN", gather([part(1, 2)]), {"rank": 1})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "it is NaN" and again.about == {"rank": 1}
    assert torch.equal(again.rows["log_prob"], error.rows["log_prob"])


@pytest.mark.parametrize("missing", TOKEN_FIELDS[:4])
def test_token_fields_are_named_as_the_loss_takes_them(missing):
    import inspect

    from fgrpo_plugin.host.worker.policy_loss import f_grpo_policy_loss

    assert missing in inspect.signature(f_grpo_policy_loss).parameters
