"""An update that is not finite, in verl's own actor workers: it ends before the optimiser's step, with its rows."""

from types import SimpleNamespace

import pytest
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.replay_rows import NonFiniteUpdate, Saved
from fgrpo_plugin.host.worker.policy_loss import POLICY_LOSSES
from fgrpo_plugin.replay.recompute import recompute
from tests.support.engine_jobs import ON_POLICY, RESPONSES, dump, job, joined, on_policy, run_jobs
from tests.support.micro_batches import actor_config, loss_arguments, loss_rows, run_loss
from tests.support.worker import make_model, nested

ROW = 5
"""Of the dumped batch, which is made bad; the long rows 2 and 8 make other micro-batches."""
ENGINES = {"fsdp2": {}, "megatron": {"group": "cpu_megatron", "optimiser": "adam megatron"}}


def _with_reference(data, row, value):
    rows = [part.clone() for part in data["ref_log_prob"].unbind()]
    rows[row][1] = value
    data["ref_log_prob"] = nested(rows)
    return data


def _with_advantage(data, row, value):
    data["f_divergence_advantage"][row] = value
    return data


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Updates with a reference that is NaN in one token, and with slopes too large to be squared."""
    folder = tmp_path_factory.mktemp("failing")
    torch.manual_seed(0)
    make_model(str(folder / "model"), layers=2, hidden=32, key_value_heads=2)
    both = joined(1)
    off = both["f_divergence_side"].nonzero().flatten().tolist()
    dump(
        folder,
        nan=_with_reference(on_policy(0.0), ROW, float("nan")),
        steep=_with_advantage(on_policy(0.0), ROW, 1e25),
        both=_with_reference(both, off[3], float("-inf")),
    )
    jobs = [
        job(folder, f"{batch} {engine}", batch, "f_grpo", fails=True, **asked)
        for engine, asked in ENGINES.items()
        for batch in ("nan", "steep")
    ]
    jobs.append(job(folder, "memory", "steep", "f_grpo", micro=4, fails="memory in micro-batch 3"))
    jobs.append(job(folder, "both", "both", "f_hal", fails=True))
    jobs.append(job(folder, "two ranks", "steep", "f_grpo", ranks=2, fails=True))
    return SimpleNamespace(folder=folder, off=off[3], ranks=run_jobs(jobs, folder))


def _weights(folder):
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).named_parameters())


def _failed(rank):
    said, rows, about = rank["failed"]
    return said, Saved(rows, about)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", ["nan", "steep"])
def test_nothing_reaches_the_parameters(found, engine, batch):
    start = _weights(found.folder)
    after = found.ranks[f"{batch} {engine}"][0]["parameters"]
    assert after.keys() == start.keys()
    assert all(torch.equal(after[name], value) for name, value in start.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_cannot_be_computed_takes_its_rows_along_and_they_name_the_token(found, engine):
    said, saved = _failed(found.ranks[f"nan {engine}"][0])
    assert said.startswith("the loss of a mini-batch cannot be computed: log_prob, ref_log_prob or old_log_prob is not")
    assert (saved.about["kind"], saved.about["loss"], saved.about["dp_size"]) == ("loss", "f_grpo", 1)
    assert FDivergenceConfig(**saved.about["settings"]) == FDivergenceConfig()
    bad = [row for row in recompute(saved) if row.reason]
    assert [row.reason for row in bad] == ["log pi_ref = nan at token 1"]
    responses = torch.load(found.folder / "nan.pt", weights_only=False)["responses"].unbind()
    assert saved.rows["responses"][bad[0].index, : RESPONSES[ROW]].tolist() == responses[ROW].tolist()
    assert bad[0].tokens == RESPONSES[ROW] and bad[0].kind == "on-policy"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_whose_norm_overflows_takes_the_whole_mini_batch_along(found, engine):
    said, saved = _failed(found.ranks[f"steep {engine}"][0])
    assert said.startswith("the gradient of a mini-batch is not finite (") and saved.about["kind"] == "gradient"
    rows = recompute(saved)
    assert len(rows) == ON_POLICY and not any(row.reason for row in rows)
    assert sorted(row.tokens for row in rows) == sorted(RESPONSES)
    steepest = max(rows, key=lambda row: row.slope)
    assert steepest.slope > 1e20 and float(saved.rows["f_divergence_advantage"][steepest.index]) == pytest.approx(1e25)


def test_a_micro_batch_without_memory_ends_the_update_before_its_step(found):
    rank = found.ranks["memory"][0]
    assert rank["failed"] == "CUDA out of memory."
    assert all(torch.equal(rank["parameters"][name], value) for name, value in _weights(found.folder).items())


def test_every_rank_ends_with_its_own_rows(found):
    ranks = [_failed(rank) for rank in found.ranks["two ranks"]]
    assert [saved.about["rank"] for _, saved in ranks] == [0, 1]
    assert all("the gradient" in said for said, _ in ranks)
    assert [len(saved.rows["log_prob"]) for _, saved in ranks] == [ON_POLICY // 2] * 2


def test_a_preference_row_is_named_with_its_own_tokens(found):
    _, saved = _failed(found.ranks["both"][0])
    (bad,) = [row for row in recompute(saved) if row.reason]
    data = torch.load(found.folder / "both.pt", weights_only=False)
    assert bad.reason == "log pi_ref = -inf at token 1" and saved.about["loss"] == "f_hal"
    assert bad.kind == ("desirable" if float(data["f_divergence_side"][found.off]) > 0 else "undesirable")
    response = data["responses"].unbind()[found.off].tolist()
    assert bad.tokens == len(response) == int(data["f_divergence_tokens"][found.off])
    assert saved.rows["responses"][bad.index, : bad.tokens].tolist() == response


def test_a_term_that_overflows_ends_the_loss_by_itself_too():
    given = loss_arguments(rows=3)
    given["f_divergence_advantage"][1] = -3e38  # finite, times a term that is larger than 2
    given["ref_log_prob"][1] -= 9.0
    with pytest.raises(NonFiniteUpdate, match="the loss of a mini-batch, or its slope to an r, is not finite") as ended:
        POLICY_LOSSES["f_grpo"](**given)
    saved = Saved(ended.value.rows, ended.value.about)
    bad = [(row.index, row.reason) for row in recompute(saved) if row.reason]
    assert [index for index, _ in bad] == [1] and bad[0][1].startswith("|a| w times the term of ")
    assert "responses" not in saved.rows


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_advantage_that_is_not_finite_is_named(value):
    given = loss_arguments(rows=3)
    given["f_divergence_advantage"][2] = value
    with pytest.raises(NonFiniteUpdate, match="advantages or weights is not finite in 1 rows") as ended:
        POLICY_LOSSES["f_grpo"](**given)
    rows = recompute(Saved(ended.value.rows, ended.value.about))
    assert [row.reason for row in rows] == ["", "", f"advantage = {value}"]


def test_a_finite_loss_is_what_it_was():
    total, metrics, gradient = run_loss(loss_rows(), actor_config(), [[*range(6)], [*range(6, 12)]])
    assert total != 0 and len(metrics) == 2 and bool(torch.isfinite(gradient).all())


def test_other_losses_and_scaled_gradients_are_left_alone():
    """verl's own losses remember nothing, and float16's scale is found by gradients that overflow."""
    from fgrpo_plugin.host.worker.non_finite import _current, watch_gradients

    norms = []

    class BaseEngine:
        scaler = None

        def train_batch(self, data, loss_function):
            loss_function(data=data)
            return {"metrics": {"grad_norm": norms[-1]}}

    watch_gradients(SimpleNamespace(BaseEngine=BaseEngine))
    engine = BaseEngine()

    def ours(data):
        _current.get().parts.append({"response_mask": torch.ones(1, 1), **dict.fromkeys(LOG_PROBS, torch.zeros(1, 1))})

    norms.append(float("inf"))
    assert engine.train_batch({}, lambda data: None)["metrics"]["grad_norm"] == float("inf")
    with pytest.raises(NonFiniteUpdate, match="its norm is inf"):
        engine.train_batch({}, ours)
    engine.scaler = object()
    assert engine.train_batch({}, ours)["metrics"]["grad_norm"] == float("inf")
    engine.scaler = None
    norms.append(torch.tensor(2.0))
    assert float(engine.train_batch({}, ours)["metrics"]["grad_norm"]) == 2
    assert _current.get() is None


LOG_PROBS = ("log_prob", "old_log_prob", "ref_log_prob")
