"""verl's own Megatron engine on the CPU: however it splits an update, loss and gradient are those of FSDP2 on one rank.

In float32 unless a test says otherwise. One fixture makes the quick updates and one the others, since starting verl
costs more than they do.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.engine_jobs import EXPERTS, ROWS, difference, job, largest, prepare, run_jobs

pytest.importorskip("megatron.core")

MODEL, MEGATRON = "actor_rollout_ref.model", "actor_rollout_ref.actor.megatron"
TENSOR, PIPELINE, CONTEXT, EXPERT = (
    f"{MEGATRON}.{kind}_parallel_size=2" for kind in ("tensor_model", "pipeline_model", "context", "expert_model")
)
PACKED = f"{MODEL}.use_remove_padding=true"
# Else each data-parallel rank holds a share of the gradient, while the test looks at the whole.
UNSHARDED = f"{MEGATRON}.use_distributed_optimizer=false"
BF16 = f"{MEGATRON}.dtype=bfloat16"
PER_TOKEN = f"+{MEGATRON}.override_transformer_config.calculate_per_token_loss=true"
# name -> overrides, ranks, data-parallel ranks
QUICK = {"one rank": ([], 1, 1), "tensor parallel": ([TENSOR], 2, 1), "pipeline parallel": ([PIPELINE], 2, 1)}
LONG = {
    "packing": ([PACKED], 1, 1),
    "data parallel": ([UNSHARDED], 2, 2),
    "context parallel": ([CONTEXT, UNSHARDED], 2, 1),
    "context parallel, packing": ([CONTEXT, UNSHARDED, PACKED], 2, 1),
    "tensor and pipeline parallel": ([TENSOR, PIPELINE], 4, 1),
    "tensor and data parallel": ([TENSOR, UNSHARDED], 4, 2),
}
# Each of two stages holds the layers 1 and 3, or 2 and 4.
VIRTUAL = {"virtual pipeline": ([PIPELINE, f"{MEGATRON}.virtual_pipeline_model_parallel_size=2"], 2, 1)}
MIXTURE = {
    "one rank": ([], 1, 1),
    "expert parallel": ([EXPERT, UNSHARDED], 2, 2),
    "expert and pipeline parallel": ([EXPERT, PIPELINE, UNSHARDED], 4, 2),
}
# kind -> settings of the model, splits
MODELS = {"four layers": ({"layers": 4}, VIRTUAL), "mixture of experts": (EXPERTS, MIXTURE)}
HALF = {"bf16, tensor parallel": ([BF16, TENSOR], 2, 1), "bf16, pipeline parallel": ([BF16, PIPELINE], 2, 1)}


def _job(folder: Path, name: str, batch: str, loss: str, *more: str, **asked) -> dict:
    return job(folder, name, batch, loss, *more, optimiser="adam megatron", group="cpu_megatron", **asked)


def _jobs(folder: Path, splits: dict, **asked) -> list[dict]:
    return [
        _job(folder, f"{loss}, {name}", f"{loss}{data_parallel}", loss, *overrides, ranks=ranks, **asked)
        for loss in ROWS
        for name, (overrides, ranks, data_parallel) in splits.items()
    ]


def _whole(folder: Path, **asked) -> list[dict]:
    """FSDP2, one rank and one micro-batch."""
    return [
        job(folder, f"{loss}, whole", f"{loss}1", loss, micro=rows, optimiser="adam fsdp2", **asked)
        for loss, rows in ROWS.items()
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    """name -> what each rank reports."""
    folder = tmp_path_factory.mktemp("megatron")
    prepare(folder)
    jobs = _whole(folder, log_probs=["actor"]) + _jobs(folder, QUICK)
    for asked in jobs:
        if asked["group"] == "cpu_megatron" and asked["name"].startswith("f_grpo"):
            asked |= {"export": True, "log_probs": ["actor", "reference worker"]}
    return {"model": folder / "model"} | run_jobs(jobs, folder)


@pytest.fixture(scope="module")
def found_long(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("megatron_long")
    prepare(folder)
    jobs = _whole(folder) + _jobs(folder, LONG | HALF)
    for loss, rows in ROWS.items():
        jobs.append(_job(folder, f"{loss}, bf16", f"{loss}1", loss, BF16, micro=rows))
        half = "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16"
        jobs.append(job(folder, f"{loss}, FSDP2 bf16", f"{loss}1", loss, half, micro=rows, optimiser="adam fsdp2"))
        count = {"f_grpo": 5, "f_hal": 10}[loss]
        jobs.append(_job(folder, f"{loss}, mis-weighted", f"{loss}1", loss, per_micro_batch=count))
        per_token = [CONTEXT, UNSHARDED, PACKED, PER_TOKEN]
        jobs.append(_job(folder, f"{loss}, per token", f"{loss}1", loss, *per_token, ranks=2))
    return run_jobs(jobs, folder)


def _check_split(found: dict, loss: str, split: str, figure: Callable, of: str = "") -> None:
    (whole,) = found[f"{loss}, whole"]
    assert len(whole["micro_batches"]) == 1 and largest(whole["gradients"]) > 1e-3
    ranks = found[f"{loss}, {split}"]
    worst = [difference(whole["gradients"], rank["gradients"]) for rank in ranks]
    figure(f"Megatron, {of}{split}", loss, max(worst))
    assert max(worst) <= 1e-5
    losses = [rank["loss"] for rank in ranks if "loss" in rank]
    assert losses and all(value == pytest.approx(whole["loss"], rel=1e-5) for value in losses)
    # Uneven, or a mean of micro-batch means would pass, too.
    assert max(len({len(part) for part in rank["micro_batches"]}) for rank in ranks) > 1
    for name, value in whole["parameters"].items():
        torch.testing.assert_close(ranks[0]["parameters"][name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("split", QUICK)
@pytest.mark.parametrize("loss", ROWS)
def test_a_split_has_the_loss_the_gradient_and_the_step_of_fsdp2(found, loss, split, figure):
    _check_split(found, loss, split, figure)


@pytest.mark.long
@pytest.mark.parametrize("split", LONG)
@pytest.mark.parametrize("loss", ROWS)
def test_further_splits_have_the_loss_the_gradient_and_the_step_of_fsdp2(found_long, loss, split, figure):
    _check_split(found_long, loss, split, figure)


@pytest.fixture(scope="module")
def found_models(tmp_path_factory) -> dict[str, dict[str, list[dict]]]:
    """kind of model -> name -> what each rank reports."""
    found = {}
    for kind, (settings, splits) in MODELS.items():
        folder = tmp_path_factory.mktemp("megatron_models")
        prepare(folder, **settings)
        found[kind] = run_jobs(_whole(folder) + _jobs(folder, splits), folder)
    return found


@pytest.mark.long
@pytest.mark.parametrize("kind, split", [(kind, split) for kind, (_, splits) in MODELS.items() for split in splits])
@pytest.mark.parametrize("loss", ROWS)
def test_splits_of_other_models_have_the_loss_the_gradient_and_the_step_of_fsdp2(
    found_models, loss, kind, split, figure
):
    _check_split(found_models[kind], loss, split, figure, of=f"{kind}, ")


@pytest.mark.parametrize("split", QUICK)
def test_what_the_rollout_engine_is_sent_is_the_hugging_face_model(found, split):
    """Names and values, to the last bit, by the method that verl calls at each weight sync."""
    from safetensors.torch import load_file

    stored = load_file(found["model"] / "model.safetensors")
    for rank in found[f"f_grpo, {split}"]:
        assert rank["export"].keys() == stored.keys()
        for name, value in stored.items():
            assert torch.equal(rank["export"][name], value), name
            assert not torch.equal(rank["parameters"][name], value), name


@pytest.mark.parametrize("kind", ["actor", "reference worker"])
@pytest.mark.parametrize("split", QUICK)
def test_log_probs_are_those_of_fsdp2(found, split, kind):
    (whole,) = found["f_grpo, whole"]
    (rows,) = [rank[f"log_probs, {kind}"] for rank in found[f"f_grpo, {split}"] if rank[f"log_probs, {kind}"]]
    for row, expected in zip(rows, whole["log_probs, actor"], strict=True):
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("loss", ROWS)
def test_averaging_micro_batches_is_seen(found_long, loss):
    """The control: rows weighted by their micro-batch miss the bound by four orders of magnitude."""
    (whole,), (wrong,) = found_long[f"{loss}, whole"], found_long[f"{loss}, mis-weighted"]
    assert len(wrong["micro_batches"]) == {"f_grpo": 5, "f_hal": 10}[loss]
    assert difference(whole["gradients"], wrong["gradients"]) > 0.1


@pytest.mark.long
@pytest.mark.parametrize("loss", ROWS)
def test_bf16_stays_near_its_own_single_rank_and_near_fsdp2(found_long, loss, figure):
    """Its 8 bits leave about 1 % of the largest entry, as FSDP2's bf16 does; a wrong weight is ten times as much."""
    (whole,), (half,) = found_long[f"{loss}, whole"], found_long[f"{loss}, bf16"]
    pairs = {f"{name} against bf16 on one rank": (half, found_long[f"{loss}, {name}"]) for name in HALF}
    pairs["bf16 against FSDP2 in float32"] = whole, [half]
    pairs["FSDP2's bf16 against its float32"] = whole, found_long[f"{loss}, FSDP2 bf16"]
    for name, (expected, ranks) in pairs.items():
        worst = max(difference(expected["gradients"], rank["gradients"]) for rank in ranks)
        gap = max(abs(rank["loss"][0] - expected["loss"][0]) for rank in ranks if "loss" in rank)
        figure(f"Megatron, {name}", loss, worst)
        figure(f"Megatron, {name}", f"{loss}, loss", gap)
        assert worst <= 2e-2 and gap <= 1e-2, name


@pytest.mark.long
@pytest.mark.parametrize("loss", ROWS)
def test_the_per_token_regime_scales_a_gradient_by_the_tokens_that_the_host_drops(found_long, loss, figure):
    """Megatron-Bridge's regime under context parallelism: Megatron divides by the tokens that each rank reports.

    verl reports each micro-batch's tokens divided by the ranks, rounded down: an odd micro-batch loses one. Apart
    from this factor, little more than 1 + 1e-4 for micro-batches of 8k tokens, loss and gradient are the whole's.
    """
    (whole,) = found_long[f"{loss}, whole"]
    for rank in found_long[f"{loss}, per token"]:
        factor = sum(rank["tokens"]) / sum(tokens // 2 * 2 for tokens in rank["tokens"])
        assert factor > 1.002
        rescaled = {name: value / factor for name, value in rank["gradients"].items()}
        figure("Megatron, per token", loss, difference(whole["gradients"], rescaled))
        assert difference(whole["gradients"], rescaled) <= 1e-5
        assert rank.get("loss", whole["loss"]) == pytest.approx(whole["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> dict[str, list[dict]]:
    """A model whose head is its embedding, which Megatron's first and last pipeline stage then both hold."""
    folder = tmp_path_factory.mktemp("megatron_tied")
    # Megatron's checkpoints want each rank's share of a weight to be a multiple of 64 entries.
    prepare(folder, hidden=64, tie_word_embeddings=True)
    jobs = _whole(folder) + _jobs(folder, QUICK, export=True)
    weights = "actor_rollout_ref.actor.checkpoint.load_contents=[model]"
    jobs.append(_job(folder, "weights alone", "f_grpo1", "f_grpo", weights))
    for asked in jobs[2:]:
        asked["checkpoint"] = str(folder / asked["name"])
    return {"model": folder / "model"} | run_jobs(jobs, folder)


@pytest.mark.long
@pytest.mark.parametrize("split", QUICK)
@pytest.mark.parametrize("loss", ROWS)
def test_a_tied_head(tied, loss, split, figure):
    from safetensors.torch import load_file

    _check_split(tied, loss, split, figure, of="tied head, ")
    stored = load_file(tied["model"] / "model.safetensors")
    for rank in tied[f"{loss}, {split}"]:
        assert rank["export"].keys() == stored.keys() and "lm_head.weight" not in stored
        assert all(torch.equal(rank["export"][name], value) for name, value in stored.items())


@pytest.mark.long
@pytest.mark.parametrize("split", QUICK)
@pytest.mark.parametrize("loss", ROWS)
def test_an_update_after_loading_a_checkpoint_is_the_update_that_was_made_before(tied, loss, split):
    for rank in tied[f"{loss}, {split}"]:
        for name, value in rank["parameters"].items():
            assert torch.equal(rank["loaded"][name], value), name
            assert not torch.equal(rank["updated again"][name], value), name
            assert torch.equal(rank["updated after loading"][name], rank["updated again"][name]), name


@pytest.mark.long
def test_the_weights_of_a_checkpoint_load_without_the_optimiser(tied):
    (rank,) = tied["weights alone"]
    assert all(torch.equal(rank["loaded"][name], value) for name, value in rank["parameters"].items())
    # Adam starts anew: another step than the one that followed the first.
    assert any(not torch.equal(rank["updated after loading"][n], v) for n, v in rank["updated again"].items())
