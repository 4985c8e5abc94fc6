"""Recipes of the package through the real host's configuration, the advice loop, and the command line."""

import json

import pytest

from fgrpo_plugin.plan.configuration import overrides, planned_run_from_config
from tests.plan.planning import A100, H100, MEGATRON, run


def test_a_recipe_is_read_as_it_stands(stock_config):
    planned, notes = planned_run_from_config(stock_config("+fgrpo=math_7b"), H100)
    assert planned.model.name == "Qwen/Qwen2.5-Math-7B" and not notes
    expected = {
        "engine": "fsdp2",
        "gpus": 8,
        "lora_rank": 64,
        "prompts": 256,
        "group": 4,
        "longest": 1536,
        "tokens_per_gpu": 16384,
        "rollout_tp": 2,
        "utilization": 0.5,
        "recompute": "full",
        "dtype": "fp32",
        "compute_dtype": "bf16",
        "reference": True,
        "old_log_prob": False,
        "joined_rows": 0,
    }
    assert {name: getattr(planned, name) for name in expected} == expected


def test_f_hal_brings_its_preference_rows(stock_config):
    planned, notes = planned_run_from_config(stock_config("+fgrpo=safety"), H100)
    assert (planned.lam, planned.joined_rows) == (0.5, 512)  # as many as on-policy rows
    assert any("reward model" in note for note in notes)
    lam = "actor_rollout_ref.actor.policy_loss.f_divergence.lam"
    assert planned_run_from_config(stock_config("+fgrpo=safety", f"{lam}=0"), H100)[0].joined_rows == 0
    assert not planned_run_from_config(stock_config("+fgrpo=safety", f"{lam}=1"), H100)[0].generates
    schedule = f"{lam}={{schedule: linear, start: 1.0, end: 0.0}}"
    planned = planned_run_from_config(stock_config("+fgrpo=safety", schedule), H100)[0]
    assert planned.generates and planned.joined_rows == 512


def test_the_asynchronous_recipe_generates_on_gpus_of_its_own(stock_config):
    planned, notes = planned_run_from_config(stock_config("+fgrpo=async_7b"), H100)
    assert (planned.gpus, planned.generating_gpus, planned.all_gpus, planned.minibatch) == (8, 8, 16, 64)
    assert planned.colocated and any("side by side" in note for note in notes)
    more = stock_config(
        "+fgrpo=async_7b", "actor_rollout_ref.rollout.nnodes=2", "actor_rollout_ref.hybrid_engine=false"
    )
    planned, _ = planned_run_from_config(more, H100)
    assert (planned.generating_gpus, planned.all_gpus, planned.colocated) == (16, 24, False)
    with pytest.raises(ValueError, match="needs GPUs that generate"):
        planned_run_from_config(stock_config("+fgrpo=async_7b", "actor_rollout_ref.rollout.nnodes=0"), H100)
    plan = json.loads(run("--recipe", "async_7b", "--gpu", "H100", "--json").output)
    others = sum(seconds for phase, seconds in plan["seconds"].items() if phase != "generation")
    assert plan["gpus"] == 16
    assert plan["step_seconds"] == pytest.approx(max(plan["seconds"]["generation"], others))


def test_which_passes_an_algorithm_needs(stock_config):
    def passes(*words):
        planned = planned_run_from_config(stock_config("actor_rollout_ref.model.path=qwen2.5-7b", *words), H100)[0]
        return planned.reference, planned.old_log_prob

    dynamic = "actor_rollout_ref.actor.use_dynamic_bsz=true"
    assert passes(dynamic, "algorithm.adv_estimator=grpo") == (False, True)
    assert passes(dynamic, "algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.use_kl_loss=true") == (True, True)
    released = "+actor_rollout_ref.actor.policy_loss.f_divergence.preset=released"
    assert passes(dynamic, "algorithm.adv_estimator=f_grpo", released) == (True, True)  # four optimiser steps
    whole = "data.train_batch_size=256"
    assert passes(dynamic, "algorithm.adv_estimator=f_grpo", released, whole) == (True, False)


def test_megatrons_settings_are_read(stock_config):
    planned, _ = planned_run_from_config(stock_config(*MEGATRON), H100)
    assert (planned.tp, planned.pp, planned.cp, planned.dp, planned.gpus) == (8, 4, 2, 1, 64)
    assert planned.param_offload and planned.ref_offload and planned.recompute == "full"
    assert not planned.optimizer_offload and planned.compute_dtype == "bfloat16"


@pytest.mark.parametrize("setting", ["calculate_entropy=true", "entropy_coeff=0.01"])
def test_an_entropy_is_read(stock_config, setting):
    words = ("actor_rollout_ref.model.path=qwen2.5-7b", "actor_rollout_ref.actor.use_dynamic_bsz=true")
    assert not planned_run_from_config(stock_config(*words), H100)[0].entropy
    assert planned_run_from_config(stock_config(*words, f"actor_rollout_ref.actor.{setting}"), H100)[0].entropy


def test_stages_of_unequal_depth_are_left_to_the_configuration(stock_config):
    words = [word for word in MEGATRON if "pipeline" not in word and "context" not in word] + [
        "trainer.nnodes=6",
        "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=6",
    ]
    with pytest.raises(ValueError, match=r"pp \* virtual pp = 6 does not divide the 80 layers"):
        planned_run_from_config(stock_config(*words), H100)
    first = "+actor_rollout_ref.actor.megatron.override_transformer_config.num_layers_in_first_pipeline_stage=15"
    assert planned_run_from_config(stock_config(*words, first), H100)[0].pp == 6


CHANGES = [
    ("fsdp2", {"param_offload": True, "optimizer_offload": True, "step_offload": True, "sp": 4, "shard": 4}),
    ("fsdp2", {"lora_rank": 32, "tokens_per_gpu": 4096, "log_prob_tokens_per_gpu": 8192, "fused_kernels": True}),
    ("fsdp2", {"utilization": 0.7, "rollout_tp": 4, "recompute": "none", "nodes": 2, "gpus_per_node": 4}),
    ("fsdp2", {"prompts": 64, "minibatch": 32, "group": 8, "epochs": 2, "prompt_length": 100, "response_length": 900}),
    ("fsdp", {"engine": "fsdp", "dtype": "bf16", "max_rows": 128, "bucket_mib": 512, "rollout_sleeps": False}),
    ("megatron", {"engine": "megatron", "tp": 4, "pp": 2, "param_offload": True, "ref_offload": True}),
    ("megatron", {"engine": "megatron", "cp": 2, "step_offload": True, "recompute": "full", "lora_rank": 16}),
    ("megatron", {"engine": "megatron", "recompute": "none", "optimizer_offload": True, "temperature": 0.7}),
]


@pytest.mark.parametrize("engine, changes", CHANGES)
def test_every_change_that_is_named_is_read_back(stock_config, engine, changes):
    words = ["actor_rollout_ref.model.path=qwen2.5-7b", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
    planned, _ = planned_run_from_config(stock_config(*words, *overrides(changes, engine)), A100)
    assert {name: getattr(planned, name) for name in changes} == changes
