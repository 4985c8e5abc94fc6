"""Overrides of verl's configuration that tests of several rooms start from."""

SWITCH = "algorithm.adv_estimator=f_grpo"
MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
REFERENCE = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"
STATIC = ["actor_rollout_ref.actor.use_dynamic_bsz=false"]
F = "+actor_rollout_ref.actor.policy_loss.f_divergence"
HAL = "algorithm.adv_estimator=f_hal"
