"""Overrides of verl's configuration that tests of several rooms start from."""

SWITCH = "algorithm.adv_estimator=f_grpo"
MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
REFERENCE = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"
STATIC = [
    "actor_rollout_ref.actor.use_dynamic_bsz=false",
    *(f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu=1" for part in ("ref", "rollout")),
]
"""Micro-batches of a number of rows; that of the actor is the test's."""
F = "+actor_rollout_ref.actor.policy_loss.f_divergence"
HAL = "algorithm.adv_estimator=f_hal"
ASYNC = [
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "data.train_batch_size=256",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=8",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
]
"""Generation apart from training, one mini-batch of verl's default size at a time."""
