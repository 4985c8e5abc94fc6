"""``fgrpo plan`` as a test runs it."""

from pathlib import Path

import typer.testing

from fgrpo_plugin.cli import app
from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.gpus import find_gpu
from fgrpo_plugin.plan.memory import phases
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun

ROOT = Path(__file__).parents[2]
H100, A100 = find_gpu("H100"), find_gpu("A100-40")
ASSUMED = Assumptions()
MEGATRON = [
    "model_engine=megatron",
    "actor_rollout_ref.model.path=meta-llama/Llama-3.1-70B",
    "algorithm.adv_estimator=f_grpo",
    "trainer.nnodes=8",
    "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8",
    "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=4",
    "actor_rollout_ref.actor.megatron.context_parallel_size=2",
    "actor_rollout_ref.actor.megatron.param_offload=true",
    "actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=full",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=8",
    "actor_rollout_ref.rollout.n=4",
]


def run(*words):
    return typer.testing.CliRunner().invoke(app, ["plan", *map(str, words)])


BARE = Assumptions(overhead_gib=0, fragmentation=0)
H100 = find_gpu("H100")


def setup(model="Qwen/Qwen2.5-7B", **changes):
    return PlannedRun(model=find_model(model), gpu=H100, **changes)


def phase(planned, name, assumed=BARE):
    return next(found for found in phases(planned, assumed) if found.name == name)
