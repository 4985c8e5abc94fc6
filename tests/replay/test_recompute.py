"""An update's file computed again: each row by itself has the loss and slopes that it had among the others."""

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from fgrpo_plugin.host.contract import SUMS
from fgrpo_plugin.host.replay_rows import NonFiniteUpdate, Saved, pack
from fgrpo_plugin.host.worker.policy_loss import POLICY_LOSSES
from fgrpo_plugin.replay.recompute import recompute, replay
from tests.support.micro_batches import loss_arguments


def saved_by(kind="loss", spoil=lambda given: None, **settings):
    """What a worker would save of these rows; they need not be bad."""
    given = loss_arguments(rows=4, **settings)
    spoil(given)
    rows = {name: value.detach() for name, value in given.items() if isinstance(value, torch.Tensor)}
    rows["responses"] = torch.arange(16).reshape(4, 4)
    values = vars(given["config"].policy_loss.f_divergence)
    about = {"kind": kind, "loss": "f_grpo", "settings": dict(values), "dp_size": 1, "rank": 3, "said": "it was bad."}
    return given, Saved(rows, about)


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("divergence", ["jensen_shannon", "squared_hellinger"])
def test_rows_by_themselves_add_up_to_the_loss_and_its_gradient(divergence, level):
    given, saved = saved_by(divergence=divergence, level=level)
    loss, sums = POLICY_LOSSES["f_grpo"](**given)
    loss.backward()
    rows = recompute(saved)
    assert sum(row.loss for row in rows) == pytest.approx(sums[f"{SUMS}loss"], rel=1e-6) != 0
    slopes = given["log_prob"].grad.abs().max(dim=1).values.tolist()
    assert [row.slope for row in rows] == pytest.approx(slopes, rel=1e-6) and min(slopes) > 0
    assert sum(row.reward for row in rows) == pytest.approx(sums[f"{SUMS}reward"], rel=1e-6)
    doubled = recompute(saved, float64=True)
    assert [row.loss for row in doubled] == pytest.approx([row.loss for row in rows], rel=1e-5)
    assert [row.loss for row in doubled] != [row.loss for row in rows]


KINDS = ["on-policy", "on-policy", "desirable", "undesirable"]


def saved_of_both_halves(spoil=lambda given: None, **settings):
    """Two on-policy rows, then one of D+ with three tokens and one of D- with two, whose response_mask is 0."""
    given = loss_arguments(rows=4, **settings)
    given["response_mask"][2:] = 0
    given["f_divergence_side"] = torch.tensor([0.0, 0.0, 1.0, -1.0])
    given["f_divergence_tokens"] = torch.tensor([0, 0, 3, 2])
    given["f_divergence_lam"] = torch.full((4,), 0.4)
    given["f_divergence_count"] = torch.tensor([2.0, 2.0, 1.0, 1.0])
    spoil(given)
    rows = {name: value.detach() for name, value in given.items() if isinstance(value, torch.Tensor)}
    values = vars(given["config"].policy_loss.f_divergence)
    return given, Saved(rows, {"kind": "loss", "loss": "f_hal", "settings": dict(values), "dp_size": 1, "rank": 0})


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_preference_rows_are_of_their_side_and_have_their_own_tokens(level):
    given, saved = saved_of_both_halves(divergence="squared_hellinger", level=level)
    loss, sums = POLICY_LOSSES["f_hal"](**given)
    loss.backward()
    rows = recompute(saved)
    assert [row.kind for row in rows] == KINDS and [row.tokens for row in rows] == [4, 4, 3, 2]
    slopes = given["log_prob"].grad.abs().max(dim=1).values.tolist()
    assert [row.slope for row in rows] == pytest.approx(slopes, rel=1e-6) and min(slopes) > 0
    for kind, prefix in (("on-policy", ""), ("desirable", "desirable_"), ("undesirable", "undesirable_")):
        of_kind = [row for row in rows if row.kind == kind]
        assert sum(row.loss for row in of_kind) == pytest.approx(sums[f"{SUMS}{prefix}loss"], rel=1e-6) != 0
        assert sum(row.reward for row in of_kind) == pytest.approx(sums[f"{SUMS}{prefix}reward"], rel=1e-6) != 0


def test_what_is_not_finite_behind_a_preference_rows_tokens_is_none_of_it():
    def spoil(given):
        given["log_prob"].data[2, 2:] = float("nan")  # its last token, and padding
        given["ref_log_prob"][3, 2:] = float("nan")  # padding alone

    reasons = [row.reason for row in recompute(saved_of_both_halves(spoil)[1])]
    assert reasons == ["", "", "log pi = nan at token 2", ""]


def test_the_term_and_the_slope_of_a_row_are_told_apart():
    def steep(given):
        given["f_divergence_advantage"][1] = -3e38

    def long(given):
        steep(given)
        given["f_divergence_count"][1] = 1e30  # the slope is divided by it

    scaled = {"scale": [100.0, 1.0]}
    assert recompute(saved_by(spoil=steep, **scaled)[1])[1].reason.startswith("|a| w times the slope of ")
    assert recompute(saved_by(spoil=long, beta=5.0)[1])[1].reason.startswith("|a| w times the term of ")


def test_a_row_without_tokens_is_computed_as_nothing():
    def spoil(given):
        given["response_mask"][1] = 0
        given["log_prob"].data[1] = float("nan")

    row = recompute(saved_by(spoil=spoil)[1])[1]
    assert (row.tokens, row.loss, row.slope, row.reason) == (0, 0.0, 0.0, "")


def test_every_input_that_is_not_finite_is_named_with_its_place():
    def spoil(given):
        given["log_prob"].data[0, 2:] = float("-inf")
        given["old_log_prob"][1, 3] = float("nan")
        given["f_divergence_weight"][2] = float("inf")
        given["f_divergence_count"][3] = float("nan")

    reasons = [row.reason for row in recompute(saved_by(spoil=spoil)[1])]
    expected = ["log pi = -inf at token 2 and 1 more", "log pi_old = nan at token 3", "weight = inf", "count = nan"]
    assert reasons == expected


def test_a_sum_of_finite_log_probs_can_overflow_in_float32_alone():
    def spoil(given):
        given["log_prob"].data[0] = -2e38

    saved = saved_by(spoil=spoil)[1]
    assert recompute(saved)[0].reason.startswith("r overflows (")
    assert not recompute(saved, float64=True)[0].reason.startswith("r overflows")


def _printed(file, **asked):
    console = Console(width=200, record=True, force_terminal=False)
    reproduced = replay(file, console, **asked)
    return reproduced, console.export_text()


def _file(tmp_path, saved, step=7):
    file = tmp_path / "step_7_rank_3.safetensors"
    file.write_bytes(pack(saved.rows, {**saved.about, "step": step}))
    return file


def test_the_table_names_the_rows_and_why(tmp_path):
    def spoil(given):
        given["ref_log_prob"][2, 1] = float("nan")

    reproduced, text = _printed(_file(tmp_path, saved_by(spoil=spoil)[1]))
    assert reproduced
    assert "step 7, rank 3, 4 rows, loss f_grpo (fgrpo-plugin " in text and "in the run: it was bad." in text
    assert "1 rows are not finite:" in text
    line = next(line for line in text.splitlines() if "token 1" in line)
    assert "log pi_ref = nan at token 1" in line and " 2 " in line and "8 9 10 11" in line


@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_finite_rows_are_said_to_be_so_with_the_steepest_of_them(tmp_path, kind):
    def spoil(given):
        given["f_divergence_advantage"][1] = -1e20

    reproduced, text = _printed(_file(tmp_path, saved_by(kind, spoil)[1]))
    assert not reproduced
    assert ("so the model's backward pass made the gradient what" in text) == (kind == "gradient")
    assert ("Every row is finite in float32." in text) == (kind == "loss")
    after = text.split("the rows with the largest slopes:")[1]
    assert next(line.split()[1] for line in after.splitlines() if "on-policy" in line) == "1"


def test_a_reproduced_gradient_is_that_of_a_slope(tmp_path):
    """The slope alone overflows: the denominator has made the loss small."""

    def spoil(given):
        given["f_divergence_advantage"][1] = -3e38

    reproduced, text = _printed(_file(tmp_path, saved_by("gradient", spoil, scale=[100.0, 1.0])[1]))
    assert reproduced and "backward pass" not in text


@pytest.mark.parametrize("damage", ["text", "cut", "other"])
def test_another_file_is_refused(tmp_path, damage):
    file = _file(tmp_path, saved_by()[1])
    if damage == "text":
        file.write_text("no tensors")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        save_file({"weight": torch.zeros(2)}, file, {"format": json.dumps("pt")})
    with pytest.raises(ValueError, match="is damaged" if damage != "other" else "is not of the format"):
        replay(file, Console())


def test_neither_verl_nor_its_friends_are_needed():
    from tests.test_imports import ROOT, imported_hosts

    assert imported_hosts(("fgrpo_plugin.replay.recompute",), ROOT) == []


def test_what_a_worker_raises_is_what_a_file_holds(tmp_path):
    given, _ = saved_by(spoil=lambda given: given["ref_log_prob"].__setitem__((1, 0), float("nan")))
    with pytest.raises(NonFiniteUpdate) as ended:
        POLICY_LOSSES["f_grpo"](**given)
    reproduced, text = _printed(_file(tmp_path, Saved(ended.value.rows, ended.value.about)))
    assert reproduced and "log pi_ref = nan at token 0" in text
