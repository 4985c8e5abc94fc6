"""Preference rows in verl's three trainer modes: its own stages on a real queue, with workers that record.

Everything between `prepare_step` and `_compute_metrics` is verl's. The workers fetch, cut and reduce as verl's
do, and run its loss on log-probs that are a function of the tokens.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fgrpo_plugin.host.driver import trainer as driver
from fgrpo_plugin.host.driver.liveness import PartDied
from tests.support.queued_updates import ANSWERS, MINIBATCH, PREFERENCES, PROMPTS, check_update, log_probs, names, step

BETA = "++actor_rollout_ref.actor.policy_loss.f_divergence.beta"
MODES = ("sync", "colocate_async", "separate_async")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_the_actor_sees_both_halves_everywhere_and_nobody_else_the_preference_rows(make, queue, mode, ranks):
    trainer, workers = make(mode, ranks)
    drawn = trainer.preferences.__class__(trainer.config, trainer.tokenizer)  # the same rows once more
    left, seen, known = [], [], []
    stored, reference = set(), trainer.preferences.reference

    def counting(rows, compute):
        known.append(sum(tuple(row.ids) in stored for row in rows) / len(rows))
        stored.update(tuple(row.ids) for row in rows)
        return reference(rows, compute)

    trainer.preferences.reference = counting

    def during():
        buffer = trainer.replay_buffer
        buffer._sync_metadata_from_transfer_queue()
        left.append(len(buffer.finished_keys["train"]))
        seen.append(sum(key.startswith("preference") for key in buffer.partitions["train"]))
        assert len(buffer.running_keys["train"]) == trainer.global_steps
        assert not buffer.pending_keys["train"] and not buffer.failure_keys["train"]

    workers.during = during
    parts, per_update = PROMPTS // MINIBATCH, 1 if mode == "separate_async" else PROMPTS // MINIBATCH
    for number, lam in ((1, 0.2), (2, 0.5), (3, 0.8)):
        workers.updates.clear(), left.clear(), seen.clear(), known.clear()
        batch, metrics = step(trainer, queue)
        # One call of the workers, so one step of the learning rate, for each update of verl.
        assert len(workers.updates) == parts // per_update
        assert trainer.actor_rollout_wg is workers
        assert metrics["actor/f_divergence/lam"] == pytest.approx(lam)
        share = PREFERENCES / (PREFERENCES + MINIBATCH * ANSWERS)
        assert metrics["actor/f_divergence/preference_share"] == pytest.approx(share)
        # A mean of the updates, which verl weights by answers.
        assert metrics["actor/f_divergence/absent_share"] == pytest.approx(1 / (PROMPTS * ANSWERS), abs=0.005)
        padding = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding")]
        assert len(padding) == 1 and len(batch) == PROMPTS * ANSWERS
        assert not any(key.startswith("preference") for key in batch.keys)
        taken = [PROMPTS - (i + 1) * MINIBATCH * per_update for i in range(len(workers.updates))]
        assert left == taken and seen == [PREFERENCES * per_update] * len(workers.updates)
        for update in workers.updates:
            info = update.meta.extra_info
            assert info["global_batch_size"] == MINIBATCH * ANSWERS
            assert info["mini_batch_size"] == MINIBATCH * ANSWERS + PREFERENCES
            assert info["temperature"] == 1.0 and info["epochs"] == 1
            assert len(update.minibatches) == per_update
            check_update(update, drawn.draw(per_update, ranks), padding, ranks, lam)
        drawn_rows = number * parts * PREFERENCES
        assert trainer.preferences.sampler.state_dict() == drawn.sampler.state_dict()
        assert trainer.preferences.sampler.epochs() == drawn_rows / 2 / 20
        # A step of several updates logs their mean, which verl weights by answers: 5 here and 6 there.
        epochs = [(drawn_rows - k * per_update * PREFERENCES) / 2 / 20 for k in range(parts // per_update)]
        for name, values in (("epochs", epochs), ("cache_hits", known)):
            slack = 0 if len(values) == 1 else 0.1 * (max(values) - min(values))
            found = metrics[f"actor/f_divergence/preference_{name}"]
            assert found == pytest.approx(sum(values) / len(values), abs=slack + 1e-9), name
    assert {key.split("_")[0] for key in names(queue)} == {f"step{number}prompt{PROMPTS}" for number in (1, 2, 3)}


@pytest.mark.parametrize("mode", MODES)
def test_what_the_host_reports_of_its_own_rows_is_what_f_grpo_reports(make, queue, mode):
    logged = []
    for estimator in ("f_grpo", "f_hal"):
        trainer, _ = make(mode, 2, estimator)
        batch, metrics = step(trainer, queue)
        queue.kv_clear(keys=list(queue.kv_list("train")["train"]), partition_id="train")
        logged.append((sorted(key for key in batch.keys if key.startswith("step")), metrics))
    (alone_keys, alone), (joined_keys, joined) = logged
    assert joined_keys == alone_keys and "critic/rewards/mean" in alone and "actor/entropy_loss" in alone
    slopes = [f"actor/f_divergence/{name}_slope" for name in ("on_policy", "preference")]
    other = {"actor/pg_loss", "actor/loss", *slopes, f"{slopes[0]}_share"}  # the losses themselves, and their slopes
    lam = joined["actor/f_divergence/lam"]
    assert joined[slopes[0]] == pytest.approx((1 - lam) * alone[slopes[0]], rel=1e-5) and joined[slopes[1]] > 0 < lam
    assert (alone[slopes[1]], alone[f"{slopes[0]}_share"]) == (0, 1)
    for name in alone.keys() - other:
        if not name.startswith(("timing", "perf")):
            assert joined[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-7, nan_ok=True), name
    added = [name for name in joined.keys() - alone.keys() if not name.startswith("timing")]
    assert added and all(
        name.startswith(("actor/f_divergence/preference_", "actor/f_divergence/lam")) for name in added
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fail", ["update", "reference"])
def test_nothing_is_left_behind_by_an_update_that_fails(make, queue, mode, fail):
    trainer, workers = make(mode, 2)
    workers.fail = fail
    with pytest.raises(RuntimeError, match=f"{fail} failed"):
        step(trainer, queue)
    assert trainer.actor_rollout_wg is workers
    assert names(queue) and not any(key.startswith("preference") for key in names(queue))


@pytest.mark.parametrize("mode", MODES)
def test_held_out_preferences_are_measured_before_the_rollout_engine_has_the_devices_again(
    make, queue, tmp_path, mode, monkeypatch
):
    """verl wakes the engine at the end of a step and validates after it."""
    import json

    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    held_out = [
        {"prompt": f"{i}-1=", "chosen": f"{i}" * (i % 3 + 1), "rejected": "8" * (i % 2 + 1) + "4"} for i in range(9)
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in held_out))
    given = (f"+data.preference.val_files=[{tmp_path / 'held_out.jsonl'}]", "trainer.test_freq=2")
    trainer, workers = make(mode, 2, "f_hal", *given)
    monkeypatch.setattr(PPOTrainer, "_validate", lambda self: {"val-core/reward": 0.5})
    seen = []
    for _ in range(3):  # validated after the second step, and after the third, which is the last
        step(trainer, queue)
        seen.append(workers.measured)
        found = trainer._validate()
        measured = {name: value for name, value in found.items() if name.startswith("val-preference")}
        assert found["val-core/reward"] == 0.5 and len(measured) == (0 if len(seen) == 1 else 5)
    assert seen == [0, 1, 2] and not any(key.startswith("preference") for key in names(queue))
    beta, right, ranked, ranked_by_token = trainer.f_divergence.beta, [], [], []
    for plus, minus in zip(*[iter(trainer.preferences.held_out)] * 2, strict=True):
        rewards, policy = [], []
        for row in (plus, minus):
            ids = torch.nested.as_nested_tensor([torch.tensor(row.prompt_ids + row.response_ids)], layout=torch.jagged)
            own, change = (
                values.values()[-len(row.response_ids) - 1 : -1].tolist()
                for values in (log_probs(ids, 3), log_probs(ids, 3) - log_probs(ids, 7))
            )
            rewards.append(beta * sum(change))
            policy.append((math.fsum(own), math.fsum(own) / len(own)))
        right.append(1.0 if rewards[0] > rewards[1] else 0.5 if rewards[0] == rewards[1] else 0.0)
        ranked.append(policy[0][0] >= policy[1][0])
        ranked_by_token.append(policy[0][1] >= policy[1][1])
    assert measured["val-preference/accuracy"] == pytest.approx(sum(right) / 9)
    # Each rank computes nine rows: the two of the fifth pair come from different ranks.
    assert measured["val-preference/ranking_accuracy"] == pytest.approx(sum(ranked) / 9)
    assert measured["val-preference/ranking_accuracy_length_normalized"] == pytest.approx(sum(ranked_by_token) / 9)
    assert sum(ranked) not in (sum(right), sum(ranked_by_token))


@pytest.mark.parametrize(
    "mode, difference, warned",
    [("sync", 0.012, True), ("sync", 0.008, False), ("colocate_async", 0.03, False), ("separate_async", 0.06, True)],
)
def test_rollouts_that_are_not_the_actors_are_said_earlier_where_they_should_be_fresh(
    make, queue, monkeypatch, capsys, mode, difference, warned
):
    from fgrpo_plugin.host.driver import trainer as module

    divide = module.divide_sums
    monkeypatch.setattr(
        module, "divide_sums", lambda *a, **k: divide(*a, **k) | {"training/rollout_probs_diff_mean": difference}
    )
    trainer, _ = make(mode, 1, "f_grpo")
    capsys.readouterr()
    step(trainer, queue)
    said = [line for line in capsys.readouterr().out.splitlines() if "mean |p_actor - p_rollout|" in line]
    assert len(said) == warned * (PROMPTS // MINIBATCH if mode == "separate_async" else 1)


def test_a_batch_of_more_rows_than_were_counted_with_is_refused(make, queue):
    """Prompts that ask for more responses than rollout.n would add optimiser steps, on rollouts that are not fresh."""
    trainer, _ = make("sync", 1, "f_grpo")
    trainer.config.actor_rollout_ref.rollout.n = ANSWERS - 1
    with pytest.raises(ValueError, match="some prompt asks for more responses than"):
        step(trainer, queue)


def test_a_run_that_ends_before_its_steps_says_so_before_any_worker_starts(make, capsys):
    trainer, _ = make("sync", 1, "f_hal", "trainer.total_training_steps=600", "trainer.total_epochs=2")
    trainer.processor = None
    capsys.readouterr()
    trainer._init_dataloader()
    said = capsys.readouterr().out
    assert f"the run ends after {2 * 1024 // PROMPTS} steps" in said and "its schedule goes on" not in said


@pytest.mark.parametrize("estimator", ["f_grpo", "f_hal"])
def test_a_checkpoint_keeps_the_runs_settings_beside_verls_files(make, tmp_path, estimator):
    trainer, workers = make("sync", 1, estimator, f"trainer.default_local_dir={tmp_path / 'run'}")
    folder = tmp_path / "run" / "global_step_1"
    workers.save_checkpoint = lambda *given, **more: None
    trainer.use_critic, trainer.train_dataloader = False, SimpleNamespace(state_dict=dict)
    trainer._save_checkpoint()
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "1"
    record = json.loads((folder / "f_divergence_run.json").read_text())
    assert record["algorithm"] == estimator and record["step"] == 1 and record["total_steps"] == 3
    assert ("lam" in record) == (estimator == "f_hal") == (folder / "f_divergence.json").is_file()


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
@pytest.mark.parametrize("estimator", ["f_grpo", "f_hal"])
def test_a_resumed_run_says_which_settings_its_checkpoint_had_otherwise(make, tmp_path, capsys, estimator, mode):
    where = [f"trainer.default_local_dir={tmp_path / 'run'}"]
    if mode == "resume_path":
        where = [f"trainer.resume_mode={mode}", f"trainer.resume_from_path={tmp_path / 'run' / 'global_step_1'}"]
    trainer, workers = make("sync", 1, estimator, f"trainer.default_local_dir={tmp_path / 'run'}")
    workers.save_checkpoint = lambda folder, *given, **more: Path(folder).mkdir()
    loader = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
    trainer.use_critic, trainer.train_dataloader = False, loader
    trainer._save_checkpoint()
    for words, said in (([], False), ([f"{BETA}=0.2"], True)):
        resumed, workers = make("sync", 1, estimator, *where, *words)
        workers.load_checkpoint = lambda *given, **more: None
        resumed.use_critic, resumed.train_dataloader = False, loader
        capsys.readouterr()
        resumed._load_checkpoint()
        printed = capsys.readouterr().out
        assert resumed.global_steps == 1
        assert ("the checkpoint had other settings; from here on: f_divergence.beta: 0.1 -> 0.2\n" in printed) is said
        assert ("other settings" in printed) is said


@pytest.mark.parametrize("level", ["sequence", "sequence_mean", "token"])
def test_held_out_rows_are_ranked_by_the_policy_and_rewarded_against_the_reference(level):
    """The numbers of a validation from what verl's two stages give, which need no queue here."""
    from fgrpo_plugin.config import FDivergenceConfig
    from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
    from fgrpo_plugin.preference.tokens import TokenRow

    lengths = [3, 1, 2, 4, 2, 2]
    rows = [TokenRow([1], [2] * n, i % 2 == 0, f"p{i // 2}", "") for i, n in enumerate(lengths)]
    policy = [[-1.0, -1.0, -1.0], [-2.5], [-3.0, -2.0], [-1.0] * 4, [-1.0, -2.0], [-2.0, -1.0]]
    reference = [[-2.0, -2.0, -2.0], [-2.0], [-3.0, -4.0], [-1.0] * 4, [-1.0, -1.0], [-2.0, -1.0]]

    class Stages(FDivergenceTrainer):
        f_divergence = FDivergenceConfig(beta=0.5, level=level)

        def _policy_log_probs(self, asked):
            return [torch.tensor(policy[rows.index(row)]) for row in asked]

    trainer = Stages()
    assert trainer._held_out_preferences() == {}
    trainer.preferences = SimpleNamespace(
        held_out=rows, reference=lambda asked, compute: ([torch.tensor(reference[rows.index(r)]) for r in asked], 1.0)
    )
    found = trainer._held_out_preferences()
    # log(pi/pi_ref): +3 to -0.5, +2 to 0, -1 to 0. log pi: -3 to -2.5, -5 to -4, a tie. Means: -1 to -2.5, -2.5 to -1.
    assert found["val-preference/accuracy"] == pytest.approx(2 / 3)
    assert found["val-preference/ranking_accuracy"] == pytest.approx(1 / 3)
    assert found["val-preference/ranking_accuracy_length_normalized"] == pytest.approx(2 / 3)
    trainer.preferences.held_out = [TokenRow([1], [2] * n, i % 2 == 0, None, "") for i, n in enumerate(lengths)]
    rows = trainer.preferences.held_out
    assert not any("ranking" in name for name in trainer._held_out_preferences())


def test_what_a_dead_part_has_left_incomplete_is_neither_trained_on_nor_saved(make, queue, monkeypatch):
    trainer, workers = make("sync", 1)
    trainer._parts, asked = {"rollout server 0": object()}, []

    def dead(parts):
        asked.append(parts)
        raise PartDied("rollout server 0 has died")

    monkeypatch.setattr(driver, "require_living", dead)
    with pytest.raises(PartDied):
        step(trainer, queue)  # whose rows lack a response
    assert workers.updates == [] and asked == [trainer._parts]
    with pytest.raises(PartDied):
        trainer._save_checkpoint()
    assert not trainer._checkpoint_folder().exists() and len(asked) == 2
