"""What every process of a run agrees on: names, row fields, prefixes of metrics, and what became of each shim.

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
"""One number a row, attached by the driver: a_i, w_i, the denominator, and 1 in the first mini-batch of the update.

A further one gets its values in driver/rows.py and, for preference rows, in driver/joining.py, and is a parameter of
both losses in worker/policy_loss.py.
"""
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
"""Metrics of a training step begin with it."""
SUMS = PREFIX + "sums/"
"""The workers' sums and counts begin with it; the driver divides and removes them."""
VALIDATION = "val-preference/"
"""Metrics on held-out preference data begin with it."""

BAD_REWARD = "fgrpo_bad_reward"
"""The method by which verl's reward workers tell the driver of a response without a usable reward."""

APPLIED: dict[str, str] = {}
"""Shim -> ``applied``, or ``not needed`` where verl has the feature of the shim's patch."""
REFUSED: dict[str, str] = {}
"""Shim -> why this verl could not be adapted. Other algorithms run on; f-GRPO refuses to start with these sentences."""

REPLACED_SOURCES: dict[str, dict[str, str]] = {
    "verl.workers.utils.losses:ppo_loss": {
        "d7c0f8772b444f55a59975a1fae154c43a2dab4724a88c89d95237e0a128c561": "verl 0.9.1",
    },
    "verl.utils.device:auto_set_device": {
        "031feb0fd93538991fc74fb8cde2dcaddf7c1855cd1d06f809ecfb64cba6e5fc": "verl 0.9.1",
    },
    "verl.trainer.ppo.utils:need_reference_policy": {
        "b8a793a391c047143b1a5773c8391b362f0e4062e467022ed09a27f57505e6d7": "verl 0.9.1",
    },
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer:BucketedWeightSender": {
        "4d8596c372a144c2a2397b1c053a030268143fb1feed7e582a85ca6a6e866e7c": "verl 0.9.1",
        "bbed4785f4fc9bd2b10c2956c6256e9a8d0360e2de77559fa3b313697f2ff6b3": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter._execute_method": {
        "f58c74367fbad112f461727543cbb08323de6fb4da00c55bf1085b5d183e6074": "verl 0.9.1",
    },
    "verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter.update_weights": {
        "db65d1f4e062c819bb77970e1339c82b80285abbe35c3f3569885a04920befd3": "verl 0.9.1",
        "14a4e8e84fda1eef2f9ed2111d1a17e40c5875f99791776b29eba234d4b1cbe5": "verl 0.9.0 and main at 1dda039b9",
    },
}
"""What a shim replaces or wraps in verl -> SHA-256 of each version that it was written for -> which version that is."""
USED_SOURCES: dict[str, dict[str, str]] = {
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._update_actor": {
        "d7009bd8a69d40b9e96c13bda5226cc0ab2c18db706606ea88e787b0ccdc3d83": "verl 0.9.1",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._init_dataloader": {
        "86cf3749e087b883b1ddfd5b153f1e8c0d1bc83aaa0c66bf43ce63c04602d3c4": "verl 0.9.1",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.fit": {
        "7d83a81c2e62979ffec22f90dc8f2e44bf98dd59d6b50809c359727090cb4a56": "verl 0.9.1",
        "2405de0aa6c5b45cd3149eb8e147402e57aefe799db5cdc37441123db11136b8": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._load_checkpoint": {
        "bb446d77c48ac6cc633e86c83b7195b78d899ece10d1b5e7150908acddb17265": "verl 0.9.1",
        "0264a1b4164f90124c773c00694ecde90681c425fb1f59f28cd2d3b19fd18fa8": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._save_checkpoint": {
        "8c2435b577e54f19ab6012e1eb5f44f01e6c8f4dd6380467914cb6afb9ab9d23": "verl 0.9.1",
        "7e44c7bdf605897a643dfc22e28fc7d18754ee3b78b7bec68b639698868d2974": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._validate": {
        "f1d58a70e91d7883d78f827c5fb583094ae307c85f6e50ec7a6b4e44092f5bfa": "verl 0.9.1",
        "aef5653fc37410380b04c783b2915070834ad3cf6038a67db7b9aaf852d48944": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_ref_log_prob": {
        "f4d69ef51b12c284ab0f9961cd06a36b05b9cc662d9a8cec988701a86a6bf4f1": "verl 0.9.1",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_metrics": {
        "9c5c555787889555c5bd77e59f57b87d03a08e0449903a63e26186d6f511fcec": "verl 0.9.1",
        "9a696c6a5261bdf58bede26aa42233f4318c04dac84868cd9e879be54b9f99e2": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.step": {
        "e22f53aadb7805d2d15d16ba6528b6ef8628dfab5949ef00abbc339f5a35ec80": "verl 0.9.1",
        "7d41763c2475e7415813dc01564aef078d6b753a3aaec6912e7737f7d0ffcab5": "verl 0.9.0",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._setup": {
        "248aee497276b816dae699b676fc595294f90bb378f652fdf884d756d965b0da": "verl 0.9.1",
        "f6b19038da99f6fb7ace934c6b61956a9a81e643e4a16193bbb87a356632e5cc": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._balance_batch": {
        "f9b6e887d7504a65d89832af96dc590554ae1b234f84052c067980fba1cd5bb3": "verl 0.9.1",
    },
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_init_end": {
        "0cc759a56864dec855a432605bbe28723cc9b69d3ac6b0014b691c4768a7c2f7": "verl 0.9.1",
    },
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_step_end": {
        "a759d37bd53da9f555354ed9dfec119746e7584b20a5b352eaaf161d90e13f11": "verl 0.9.1",
    },
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_sample_end": {
        "16f25f1081e0fddc377b8e8357a3b4504c38edc91e5f1eeb5ec8f0f15cf9ee31": "verl 0.9.1",
        "1b4eb3169b46779a04bc056aa20d4d5074d69ea7e29c44e5947a457c01fb947e": "verl 0.9.0 and main at 1dda039b9",
    },
    "verl.experimental.reward_loop.reward_loop:RewardLoopWorker.compute_score": {
        "163c1ca0102cfb2dc8e02cf4dc994feb6a154bb22a019d01736fce5607dc7649": "verl 0.9.1",
    },
    "verl.workers.engine.base:BaseEngine.train_batch": {
        "dd5e7dba6b8f69b5955685c20823674199e24ba8395f9309f770f575c8bf2d66": "verl 0.9.1",
    },
    "verl.workers.engine_workers:TrainingWorker.train_mini_batch": {
        "02b50b03fe7d8d29596ccbd41e5d3907d80a566666dc0106fbf54fc886d6601a": "verl 0.9.1",
        "6aaa8b26d190dc7efee5b0ee66990505539c8e39f2139c302c9952da7446010a": "verl 0.9.0",
    },
    "verl.workers.engine_workers:ActorRolloutRefWorker.update_actor": {
        "c33d5103077466664a5a44a8936e739e510c28857c0a4295317590c1a90c3e6e": "verl 0.9.1",
        "81b227f899a02beb368fccffcc5163edff3a347200db32207460cbdd115226ea": "verl 0.9.0",
    },
    "verl.workers.engine_workers:ActorRolloutRefWorker.compute_log_prob": {
        "bea185dbc78934e6063a8e23ddc1c565251881cd0e2026dbfd534d19ddbef9ec": "verl 0.9.1",
    },
    "verl.workers.utils.padding:response_from_nested": {
        "41a4bf54aa981c0993b7ba7a424c5d38378f8d434e18bc04c7ad7a59f6846986": "verl 0.9.1",
    },
}
"""The same of what the driver overrides in verl, calls or relies on without replacing it."""
