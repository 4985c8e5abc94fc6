"""However FSDP2 splits an update, loss and gradient are those of one rank with one micro-batch (CPU, gloo, float32).

All updates are made by one fixture, since starting verl costs more than they do.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fgrpo_plugin.host.metrics import divide_sums
from tests.support.engine_jobs import (
    EXPERTS,
    LAM,
    ON_POLICY,
    ROWS,
    SETTINGS,
    adapter,
    difference,
    job,
    joined,
    largest,
    on_policy,
    prepare,
    run_jobs,
)

MODEL, ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"
PACKED = [f"{MODEL}.use_remove_padding=true"]
ULYSSES = [
    *PACKED,
    f"{MODEL}.override_config.attn_implementation=cpu_packed",
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=2",
]
FSDP1 = [f"{ACTOR}.strategy=fsdp"]
MICRO_BATCHES = {"f_grpo": 5, "f_hal": 10}  # of the dynamic batch size on one rank
# name -> overrides, ranks, data-parallel ranks, rows in a micro-batch (0: as many as a token budget allows)
SPLITS = {
    "gradient accumulation": ([], 1, 1, 4),
    "dynamic batch size": ([], 1, 1, 0),
    "two ranks": ([], 2, 2, 0),
    "packing": (PACKED, 1, 1, 0),
    "Ulysses": (ULYSSES, 2, 1, 0),
}
VERSION1 = {"FSDP 1, gradient accumulation": (FSDP1, 1, 1, 4), "FSDP 1, two ranks": (FSDP1, 2, 2, 0)}
LORA = {"LoRA": ([], 1, 1, 4), "LoRA, two ranks": ([], 2, 2, 0)}
FOUR_RANKS = {
    "two ranks, Ulysses": (ULYSSES, 4, 2, 0),
    # Pairs of ranks share the weights, and both pairs hold them all.
    "two ranks, Ulysses, sharded by two": ([*ULYSSES, f"{ACTOR}.fsdp_config.fsdp_size=2"], 4, 2, 0),
}
MIXTURE = {"dynamic batch size": ([], 1, 1, 0), "two ranks": ([], 2, 2, 0)}
# verl's patch stays in the process. Its kernel takes no head that FSDP2 shards on its own, as it does one not tied.
FUSED = {"fused kernels": ([f"{MODEL}.use_fused_kernels=true"], 1, 1, 0)}
# kind -> settings of the model, splits
LONG = {
    "four ranks": ({}, FOUR_RANKS),
    "mixture of experts": (EXPERTS, MIXTURE),
    "tied head": ({"tie_word_embeddings": True}, FUSED),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    """name -> what each rank reports."""
    folder = tmp_path_factory.mktemp("engines")
    prepare(folder)
    lora = adapter(str(folder / "model"), folder / "adapter")
    both = ["adapter off", "actor"]
    jobs = _jobs(folder, SPLITS) + _jobs(folder, VERSION1, export=True) + _jobs(folder, LORA, *lora)
    for loss, rows in ROWS.items():
        jobs.append(job(folder, f"{loss}, whole", f"{loss}1", loss, micro=rows, log_probs=["actor"]))
        jobs.append(job(folder, f"{loss}, LoRA whole", f"{loss}1", loss, *lora, micro=rows, log_probs=both))
        jobs.append(job(folder, f"{loss}, mis-weighted", f"{loss}1", loss, per_micro_batch=MICRO_BATCHES[loss]))
    return {"model": folder / "model"} | run_jobs(jobs, folder)


def _jobs(folder: Path, splits: dict, *more: str, **asked) -> list[dict]:
    return [
        job(folder, f"{loss}, {name}", f"{loss}{data_parallel}", loss, *more, *overrides, ranks=n, micro=micro, **asked)
        for loss in ROWS
        for name, (overrides, n, data_parallel, micro) in splits.items()
    ]


@pytest.fixture(scope="module")
def found_long(tmp_path_factory) -> dict[str, dict[str, list[dict]]]:
    """kind -> name -> what each rank reports."""
    found = {}
    for kind, (settings, splits) in LONG.items():
        folder = tmp_path_factory.mktemp("engines_long")
        prepare(folder, **settings)
        whole = [job(folder, f"{loss}, whole", f"{loss}1", loss, micro=rows) for loss, rows in ROWS.items()]
        found[kind] = run_jobs(whole + _jobs(folder, splits), folder)
    return found


def _metrics(rank: dict, loss: str) -> dict[str, float]:
    return divide_sums(dict(rank["metrics"]), SETTINGS, lam=LAM if loss == "f_hal" else 0.0, compare_rollout=True)


def _check_split(found: dict, loss: str, split: str, figure: Callable, of: str = "", reference: str = "whole") -> None:
    (whole,) = found[f"{loss}, {reference}"]
    assert len(whole["micro_batches"]) == 1 and largest(whole["gradients"]) > 1e-3
    ranks = found[f"{loss}, {split}"]
    for rank in ranks:
        assert len(rank["micro_batches"]) > 1
        assert difference(whole["gradients"], rank["gradients"]) <= 1e-5
    # verl reports the mean over data-parallel ranks, once per data-parallel rank.
    losses = [rank["loss"] for rank in ranks if "loss" in rank]
    assert losses and all(loss == pytest.approx(whole["loss"], rel=1e-5) for loss in losses)
    expected, *others = (_metrics(rank, loss) for rank in [whole, *(rank for rank in ranks if "metrics" in rank)])
    assert len(expected) > 10 and others
    for found in others:  # what a step logs does not depend on the split either; tests/host/test_metrics.py defines it
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # Of probabilities that are all near 1/300 a correlation in float32 has three digits.
            least = 1e-3 if name.endswith("pearson_corr") else 1e-5
            assert found[name] == pytest.approx(value, rel=1e-4, abs=least), name
    figure(f"FSDP, {of}{split}", loss, max(difference(whole["gradients"], rank["gradients"]) for rank in ranks))


@pytest.mark.parametrize("split", [*SPLITS, *VERSION1, *LORA])
@pytest.mark.parametrize("loss", ROWS)
def test_a_split_has_the_loss_and_the_gradient_of_the_whole(found, loss, split, figure):
    _check_split(found, loss, split, figure, reference="LoRA whole" if split in LORA else "whole")


@pytest.mark.long
@pytest.mark.parametrize("kind, split", [(kind, split) for kind, (_, splits) in LONG.items() for split in splits])
@pytest.mark.parametrize("loss", ROWS)
def test_further_splits_have_the_loss_and_the_gradient_of_the_whole(found_long, loss, kind, split, figure):
    _check_split(found_long[kind], loss, split, figure, of=f"{kind}, ")
    # Uneven, or a mean of micro-batch means would pass, too.
    assert len({len(part) for rank in found_long[kind][f"{loss}, {split}"] for part in rank["micro_batches"]}) > 1


@pytest.mark.parametrize("split", VERSION1)
def test_what_fsdp_1_sends_the_rollout_engine_is_the_hugging_face_model(found, split):
    stored = load_file(found["model"] / "model.safetensors")
    for rank in found[f"f_grpo, {split}"]:
        assert rank["export"].keys() == stored.keys()
        assert all(torch.equal(rank["export"][name], value) for name, value in stored.items())


@pytest.mark.parametrize("loss", ROWS)
def test_the_micro_batches_are_uneven(found, loss):
    """Else a mean of micro-batch means would pass, too."""
    for split in ("dynamic batch size", "two ranks", "packing", "Ulysses"):
        ranks = found[f"{loss}, {split}"]
        sizes = [[len(part) for part in rank["micro_batches"]] for rank in ranks]
        assert all(len(set(rank)) > 1 for rank in sizes), split
        # Two data-parallel ranks hold different rows, two Ulysses ranks the same.
        assert (sizes[0] == sizes[-1]) == (split != "two ranks"), split
    if loss == "f_hal":
        kinds = [set(part) for rank in found["f_hal, two ranks"] for part in rank["micro_batches"]]
        assert {0.0} in kinds and any(0.0 not in kind for kind in kinds) and {0.0, 1.0, -1.0} in kinds, kinds


@pytest.mark.parametrize("loss, batch", [("f_grpo", on_policy(lam=0.0)), ("f_hal", joined(1))], ids=ROWS)
def test_packed_rows_stand_in_one_line_which_ulysses_ranks_share(found, loss, batch):
    tokens = batch["input_ids"].values().numel()
    assert {shape[0] for shape in found[f"{loss}, dynamic batch size"][0]["shapes"]} != {1}
    for split, ranks in (("packing", 1), ("Ulysses", 2)):
        for rank in found[f"{loss}, {split}"]:
            shapes = rank["shapes"]
            assert {shape[0] for shape in shapes} == {1} and len(shapes) < len(batch)
            padding = sum(shape[1] for shape in shapes) * ranks - tokens
            assert 0 <= padding <= (ranks - 1) * len(shapes)


@pytest.mark.parametrize("loss", ROWS)
def test_averaging_micro_batches_is_seen(found, loss):
    """The control: rows weighted by their micro-batch miss the bound by four orders of magnitude."""
    (whole,), (wrong,) = found[f"{loss}, whole"], found[f"{loss}, mis-weighted"]
    assert len(wrong["micro_batches"]) == MICRO_BATCHES[loss]
    assert difference(whole["gradients"], wrong["gradients"]) > 0.1


def test_the_reference_is_the_base_model_with_the_adapter_off(found):
    (adapted,) = found["f_grpo, LoRA whole"]
    assert all("lora_" in name for name in adapted["gradients"])
    (plain,) = found["f_grpo, whole"]
    base, off, on = plain["log_probs, actor"], adapted["log_probs, adapter off"], adapted["log_probs, actor"]
    assert len(base) == len(off) == len(on) == ON_POLICY
    for row, same, other in zip(base, off, on, strict=True):
        torch.testing.assert_close(same, row, atol=1e-6, rtol=0)
        assert not torch.allclose(other, row, atol=1e-3)


def test_ulysses_without_the_hosts_all_to_alls_is_refused():
    """With sdpa each rank would attend to its own part of the sequence, and nothing would say so."""
    import verl.workers.engine  # noqa: F401  (registers ours, which is then imported)

    from fgrpo_plugin.host.cpu.fsdp import CpuFSDPEngineWithLMHead

    model, engine = SimpleNamespace(override_config={"attn_implementation": "sdpa"}), SimpleNamespace()
    engine.ulysses_sequence_parallel_size = 2
    with pytest.raises(
        ValueError, match=r"ulysses_sequence_parallel_size=2 .*attn_implementation=cpu_packed, not sdpa\.$"
    ):
        CpuFSDPEngineWithLMHead(model, engine, None, None)
