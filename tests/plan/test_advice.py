"""What is advised fits, and nothing of it can be left out."""

from dataclasses import replace

import pytest

from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.advice import advise, excess, shortfall
from fgrpo_plugin.plan.memory import phases
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
    assert done.exit_code == 1 and "Nothing that was tried makes it fit" in done.output
    table, remains = done.output.split("What remains:")
    assert all(" more " in line or "need" in line for line in remains.strip().splitlines()[:2])
    assert {word.split(":")[0] for word in remains.split("  ") if ":" in word} == {
        phase.name for phase in phases(advice.run, ASSUMED) if not phase.fits
    }
    rows = [row.split("│")[1] for row in table.split("kept ┃")[1].splitlines() if row.startswith("│")]
    settings = [row.split("=")[0].strip() for row in rows if "=" in row]
    assert settings.count("rollout.tensor_model_parallel_size") == settings.count("trainer.nnodes") == 1
    assert settings.count("rollout.gpu_memory_utilization") == 1
