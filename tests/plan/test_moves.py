"""Every move takes less memory somewhere, or is no change of a run that has it already."""

from dataclasses import replace

import pytest

from fgrpo_plugin.plan.moves import STAGES, Setting
from fgrpo_plugin.plan.planned_run import PlannedRun
from tests.plan.planning import ASSUMED, H100, setup

RUNS = [setup(), setup(engine="megatron", tp=2), setup(dtype="bf16", lora_rank=8), setup(gpus_per_node=1)]


@pytest.mark.parametrize("planned", RUNS, ids=["fsdp2", "megatron", "small", "one"])
def test_moves_name_fields_of_a_run_and_differ_from_it(planned):
    at = Setting(planned, ASSUMED)
    for _, moves in STAGES:
        for move in moves:
            for changes in move(planned, at):
                assert set(changes) <= set(PlannedRun.__dataclass_fields__)
                assert any(getattr(planned, field) != value for field, value in changes.items())


def test_precision_and_method_are_changed_once_and_where_they_are_there():
    def offered(planned, stage):
        moves = next(moves for name, moves in STAGES if name == stage)
        return list(moves[0](planned, Setting(planned, ASSUMED)))

    assert offered(setup(), "precision") == [{"dtype": "bf16"}]
    assert not offered(setup(dtype="bf16"), "precision") and not offered(setup(engine="megatron"), "precision")
    assert offered(setup(), "method") == [{"lora_rank": 64}] and not offered(setup(lora_rank=8), "method")
    assert replace(setup(), gpu=H100) == setup()
