"""What is advised fits, and nothing of it can be left out."""

from dataclasses import replace

import pytest

from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.advice import advise, excess, shortfall
from fgrpo_plugin.plan.gpus import GIB, find_gpu
from fgrpo_plugin.plan.memory import host_bytes, phases
from fgrpo_plugin.plan.moves import STAGES, Setting
from fgrpo_plugin.plan.planned_run import PlannedRun
from tests.plan.planning import A100, ASSUMED, H100, run

FSDP = dict(model=find_model("Qwen/Qwen2.5-7B"), gpu=A100)
SPARSE = find_model("Qwen/Qwen3-235B-A22B")
DOES_NOT_FIT = [
    {"gpus_per_node": 4},
    {"gpus_per_node": 1},
    {"utilization": 0.9},
    {"utilization": 0.3},
    {"dynamic_batch": False, "micro_rows": 32, "log_prob_micro_rows": 32},
    {"engine": "megatron", "recompute": "none", "tp": 2},
    {"model": find_model("Qwen/Qwen2.5-72B"), "nodes": 4},
    {"model": SPARSE, "gpu": H100, "engine": "megatron", "nodes": 8, "tp": 4, "ep": 8, "etp": 1},
]


@pytest.mark.parametrize("changes", DOES_NOT_FIT)
def test_advice_fits_and_nothing_of_it_can_be_left_out(changes):
    planned = PlannedRun(**FSDP | changes)
    assert excess(planned, ASSUMED) > 0 and shortfall(planned, ASSUMED)
    advice = advise(planned, ASSUMED)
    assert advice.fits and excess(replace(planned, **advice.changes), ASSUMED) == 0
    for field in advice.changes:
        rest = {name: value for name, value in advice.changes.items() if name != field}
        try:
            without = replace(planned, **rest)
        except ValueError:
            continue
        pairs = {"tokens_per_gpu": "log_prob_tokens_per_gpu", "micro_rows": "log_prob_micro_rows"}
        if field not in (*pairs, *pairs.values()):  # they are changed together
            assert excess(without, ASSUMED) > 0, field
    left = [trial.excess for trial in advice.tried if trial.kept]
    assert left == sorted(left, reverse=True)


def test_advice_says_when_nothing_helps():
    """470 GB of rollout weights do not fit into the 8 x 40 GB of a node, whatever training does."""
    advice = advise(PlannedRun(model=SPARSE, gpu=A100, nodes=8), ASSUMED)
    assert not advice.fits and len(advice.tried) > 5
    done = run("--model", "Qwen3-235B-A22B", "--gpu", "A100-40", "--nodes", 8)
    assert done.exit_code == 1 and "Does not fit on 64 x A100-40GB, nor on 4 times as many" in " ".join(
        done.output.split()
    )
    table, remains = done.output.split("What remains:")
    remains, instead = remains.split("With the same changes would fit:")
    assert "64 x H100-PCIe" in instead and "256 x A100" not in instead
    assert all(" more " in line or "need" in line for line in remains.strip().splitlines()[:2])
    assert {word.split(":")[0] for word in remains.split("  ") if ":" in word} == {
        phase.name for phase in phases(advice.run, ASSUMED) if not phase.fits
    }
    rows = [row.split("│")[1] for row in table.split("kept ┃")[1].splitlines() if row.startswith("│")]
    settings = "".join(row.strip() for row in rows)
    assert settings.count("rollout.tensor_model_parallel_size") == settings.count("trainer.nnodes") == 1


ORDER = ["nothing", "copies", "micro-batches", "time", "precision", "method", "GPUs"]


@pytest.mark.parametrize("changes", [*DOES_NOT_FIT, {"gpus_per_node": 1, "gpu": find_gpu("RTX 4090")}])
def test_what_costs_less_is_tried_first(changes):
    stages = [trial.stage for trial in advise(PlannedRun(**FSDP | changes), ASSUMED).tried]
    assert stages == sorted(stages, key=ORDER.index)
    assert list(dict.fromkeys(stage for stage, _ in STAGES)) == ORDER


def test_bf16_states_come_before_lora_and_both_before_more_gpus():
    """A 7B model on one card of 24 GB: never 16 nodes of it."""
    one = replace(PlannedRun(**FSDP), gpu=find_gpu("RTX 4090"), gpus_per_node=1)
    advice = advise(one, ASSUMED)
    assert advice.fits and advice.changes["dtype"] == "bf16"
    assert not {"lora_rank", "nodes", "gpus_per_node"} & set(advice.changes)
    fsdp1 = advise(replace(one, engine="fsdp"), ASSUMED)  # whose states cannot stay on verl in training
    fields = [field for trial in fsdp1.tried for field in trial.changes]
    assert fields.index("dtype") < fields.index("lora_rank")
    assert "lora_rank" in fsdp1.changes or "lora_rank" in fields[: fields.index("gpus_per_node")]


@pytest.mark.parametrize("nodes, size", [(1, 1), (1, 4), (2, 8)])
def test_no_more_than_four_times_the_gpus_are_advised(nodes, size):
    planned = PlannedRun(**FSDP | {"nodes": nodes, "gpus_per_node": size, "model": find_model("Qwen/Qwen2.5-72B")})
    asked = Setting(planned, ASSUMED)
    more = [replace(planned, **changes) for stage, moves in STAGES[-1:] for changes in moves[0](planned, asked)]
    assert more and max(run.gpus for run in more) <= 4 * planned.gpus
    assert all(run.gpus_per_node <= 8 for run in more)


def test_host_memory_is_a_nodes():
    planned = replace(PlannedRun(**FSDP), gpu=H100, param_offload=True, optimizer_offload=True)
    assert not excess(planned, ASSUMED)
    small = replace(ASSUMED, node_memory_gib=64)
    assert excess(planned, small) > 0 and any("host memory: a node needs" in line for line in shortfall(planned, small))
    advice = advise(planned, small)
    assert advice.fits and host_bytes(advice.run) * 8 <= 64 * GIB


def test_what_the_run_would_refuse_is_left_out_of_the_advice():
    planned = PlannedRun(**FSDP | {"gpus_per_node": 4})
    first = advise(planned, ASSUMED)
    banned = next(iter(first.changes))

    def refuses(changes):
        return f"no {banned}" if banned in changes else None

    advice = advise(planned, ASSUMED, refuses)
    assert banned not in advice.changes and advice.refused[0][1] == f"no {banned}"
