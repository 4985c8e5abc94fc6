"""What every process of a run agrees on: names, row fields, prefixes of metrics, and the ledger of shims.

The settings name them before Ray starts, the driver attaches the fields, the workers read them.
"""

F_GRPO, F_HAL = "f_grpo", "f_hal"
ESTIMATORS = (F_GRPO, F_HAL)
"""Values of ``algorithm.adv_estimator`` that are ours; each selects the policy loss of the same name."""

LOSS = "actor_rollout_ref.actor.policy_loss"
"""The section that holds ``loss_mode`` and ``f_divergence``."""

VALIDATED = "f_divergence_validated"
"""Under ``algorithm``, which the advantage estimator sees too: the settings have been completed and checked."""

ROW_FIELDS = ("f_divergence_advantage", "f_divergence_weight", "f_divergence_count", "f_divergence_fresh")
"""One number a row, attached by the driver: a_i, w_i, the denominator, and 1 in the first mini-batch of the update."""
PREFERENCE_FIELDS = ("f_divergence_side", "f_divergence_tokens", "f_divergence_lam")
"""Further ones of f-HAL: +1 for D+, -1 for D- and 0 for on-policy rows, a preference row's response tokens, lambda."""
ENGINE_FIELDS = (
    "input_ids",
    "position_ids",
    "prompts",
    "responses",
    "response_mask",
    "loss_mask",
    "old_log_probs",
    "ref_log_prob",
    "advantages",
)
"""What verl's engine and loss read of a row; on-policy rows have them all when the actor is updated."""

PREFIX = "actor/f_divergence/"
"""Of the metrics of a training step."""
SUMS = PREFIX + "sums/"
"""Of the workers' sums and counts, which the driver divides and removes."""
VALIDATION = "val-preference/"
"""Of the metrics on held-out preference data."""

APPLIED: dict[str, str] = {}
"""Shim -> ``applied``, or ``not needed`` where verl has the feature of the shim's patch."""
REFUSED: dict[str, str] = {}
"""Shim -> why this verl could not be adapted. Other algorithms run on; f-GRPO refuses to start with these sentences."""
