"""What verl would not run is not planned."""

import json

import pytest

from tests.plan.planning import ROOT, run

REFUSED = [
    (
        "--recipe scale_70b_megatron {tp_}sze=4",
        "is not a setting of verl with model_engine=megatron; nearest: {tp_}size",
    ),
    ("--recipe math_7b {tp_}size=4", "{tp_}size belongs to model_engine=megatron; this run has model_engine=dp"),
    ("--recipe math_7b data.preference.batch_size=4", "use +data.preference.batch_size=4"),
    ("--recipe math_7b nosuch.thing=4", "nosuch.thing is not a setting of verl with model_engine=dp"),
    ("--recipe no_such", "no_such is not known; choose among async_7b, cpu, "),
    ("--recipe [math_7b,no_such]", "no_such is not known; choose among async_7b, cpu, "),
    ("--recipe scale_70b_megatron +{tp_}sze=4", "nearest: {tp_}size"),
    ("--recipe scale_70b_megatron --engine fsdp2", "strategy=fsdp2 contradicts model_engine=megatron"),
    ("--recipe math_7b --engine megatron", "strategy=fsdp2 contradicts model_engine=megatron"),
    ("--recipe math_7b --engine deepspeed", "strategy=deepspeed contradicts model_engine=dp"),
    ("--recipe math_7b model_engine=megatron", "strategy=fsdp2 contradicts model_engine=megatron"),
    ("--recipe math_7b --engine deepspeed", "strategy=deepspeed contradicts model_engine=dp"),
    ("--model qwen2.5-7b model_engine=veomni", "model_engine=veomni is not planned"),
    (
        "--recipe scale_70b_megatron --sp 2",
        "ulysses_sequence_parallel_size belongs to model_engine=dp; this run has model_engine=megatron",
    ),
    ("--recipe math_7b --tp 2", "{tp_}size belongs to model_engine=megatron; this run has model_engine=dp"),
    ("--model qwen2.5-7b --engine megatron --dtype bf16", "fsdp_config.model_dtype belongs to model_engine=dp"),
    ("--recipe rlvr", "+fgrpo=rlvr names no model; add --model"),
    ("--recipe quickstart", "+fgrpo=quickstart names no model; add --model"),
    ("trainer.nnodes=1", "this configuration names no model; add --model"),
    ("--recipe math_7b +actor_rollout_ref.actor.policy_loss.f_divergence.lamda=0.5", "f_divergence.lamda is not known"),
    (
        "--recipe math_7b --lam 0.5",
        "f_divergence.lam=0.5 needs preference data",
    ),
    ("--recipe safety --lam 1", "reward.reward_model.enable=true with lam=1 contradicts"),
    ("--recipe math_7b algorithm.adv_estimator=f_hal ++data.preference=3", "data.preference=3 must be a section"),
    ("--recipe safety ++data.preference.files=???", "data.preference.files=??? has no value yet"),
    ("--recipe safety +data.preference.nosuch=4", "data.preference.nosuch is not known"),
    ("--recipe safety --preference-rows 100", "batch_size=100 must be a multiple of 16"),
    ("--recipe math_7b algorithm.adv_estimator=grpo", "asks for f-GRPO but algorithm.adv_estimator=grpo"),
    ("--model qwen2.5-7b actor_rollout_ref.actor.use_dynamic_bsz=false", "ppo_micro_batch_size_per_gpu=None must be"),
    (
        "--model qwen2.5-7b algorithm.adv_estimator=grpo",
        "actor.use_dynamic_bsz is false, which verl refuses; set actor_rollout_ref.actor.use_dynamic_bsz=true, or",
    ),
    (
        "--model qwen2.5-7b algorithm.adv_estimator=grpo actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu is absent",
    ),
    (
        "--model qwen2.5-7b algorithm.adv_estimator=grpo actor_rollout_ref.actor.ppo_micro_batch_size=8",
        "(ppo_micro_batch_size, which is set, is not read by verl's workers)",
    ),
    (
        "--model qwen2.5-7b algorithm.adv_estimator=grpo actor_rollout_ref.actor.use_dynamic_bsz=true "
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
        "contradicts actor_rollout_ref.actor.use_dynamic_bsz=True",
    ),
    (
        "--model qwen2.5-7b algorithm.adv_estimator=grpo actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1 "
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1 data.train_batch_size=64",
        "verl refuses this configuration: train_batch_size (64) must be >= actor.ppo_mini_batch_size (256)",
    ),
    ("--recipe math_7b --n 1", "a group needs at least 2 responses a prompt"),
]


@pytest.mark.parametrize("words, said", REFUSED)
def test_what_the_host_would_not_run_is_refused_in_one_sentence(words, said):
    at = {"tp_": "actor_rollout_ref.actor.megatron.tensor_model_parallel_"}
    done = run("--gpu", "H100", *words.format(**at).split())
    assert done.exit_code == 2 and not isinstance(done.exception, (ValueError, TypeError))
    lines = [line for line in done.stderr.splitlines() if " is written " not in line]
    assert said.format(**at) in done.stderr and len(lines) == 1


def test_preference_data_that_are_not_there_are_a_note(tmp_path):
    def notes(*words):
        return json.loads(run("--gpu", "H100", "--json", *words).stdout)["notes"]

    words = ("--recipe", "scale_70b_megatron", "algorithm.adv_estimator=f_hal")
    assert any("data.preference.files is empty" in note for note in notes(*words))
    there = tmp_path / "pairs.jsonl"
    there.touch()
    assert not notes(*words, f"+data.preference.files=[{there}]")
    (note,) = notes(*words, f"+data.preference.files=[{there},{tmp_path}/none.jsonl]")
    assert "none.jsonl is not on this machine" in note


def test_an_unknown_group_is_answered_with_every_group():
    said = run("--gpu", "H100", "--recipe", "no_such").stderr
    groups = [file.stem for file in (ROOT / "fgrpo_plugin" / "conf" / "fgrpo").glob("*.yaml")]
    assert set(said.strip().rstrip(".").split("among ")[1].split(", ")) == set(groups)


def test_an_engine_that_a_group_leaves_open_can_be_chosen():
    words = "--recipe rlvr --engine megatron --model qwen2.5-7b --tp 2 --gpu H200 --json"
    plan = json.loads(run(*words.split()).stdout)
    command = [word for word in plan["command"].split() if "=" in word]
    chosen = ["model_engine=megatron", "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B"]
    assert command[:3] == ["+fgrpo=rlvr", *chosen]
    plan = json.loads(run(*["--recipe", "math_7b", "--engine", "fsdp", "--gpu", "H100", "--json"]).stdout)
    assert plan["command"].endswith("actor_rollout_ref.actor.strategy=fsdp")
