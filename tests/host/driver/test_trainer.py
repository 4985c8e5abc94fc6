"""Preference rows in the host's three trainer modes: its own stages on a real queue, with workers that record.

Everything between `prepare_step` and `_compute_metrics` is the host's. The workers fetch, cut and reduce as the host's
do, and run its loss on log-probs that are a function of the tokens.
"""

import shutil
import tempfile
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fgrpo_plugin.host.contract import ENGINE_FIELDS, PREFERENCE_FIELDS, ROW_FIELDS

MODES = ("sync", "colocate_async", "separate_async")
PROMPTS, ANSWERS, MINIBATCH, PREFERENCES = 4, 4, 2, 4  # in a step, to a prompt, prompts in one, preference rows in one
LAM = "{schedule: linear, start: 0.2, end: 0.8, steps: 3}"


@pytest.fixture(scope="module")
def queue():
    """A TransferQueue on a Ray of this module's own."""
    import ray
    import transfer_queue
    from omegaconf import OmegaConf

    folder = tempfile.mkdtemp(prefix="fg", dir="/tmp")  # Ray's sockets allow short paths only
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _temp_dir=folder,
    )
    storage = {"storage_backend": "SimpleStorage", "SimpleStorage": {"num_data_storage_units": 2}}
    transfer_queue.init(OmegaConf.create({"enable": True, "backend": storage}))
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def log_probs(input_ids, factor):
    """Stands for a model: nats of every token of nested rows."""
    return torch.nested.nested_tensor_from_jagged(
        -0.1 - (input_ids.values() * factor % 11) / 10, offsets=input_ids.offsets()
    )


class Workers:
    """Stands for the actor's and the reference's worker group."""

    def __init__(self, config, ranks):
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.utils import losses

        self.ranks, self._dispatch_info = ranks, {"actor": list(range(ranks))}
        self.loss = partial(losses.ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor))
        self.micro_batch = config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
        self.updates, self.during, self.fail, self.measured = [], lambda: None, "", 0

    def fetch(self, batch):
        from verl.utils.transferqueue_utils import _meta_to_realdata

        return [_meta_to_realdata(part) for part in batch.chunk(self.ranks)]

    def compute_ref_log_prob(self, batch):
        import transfer_queue as tq
        from tensordict import TensorDict

        if self.fail == "reference" and batch.partition_id == "preference":
            raise RuntimeError("reference failed")
        for part, data in zip(batch.chunk(self.ranks), self.fetch(batch), strict=True):
            values = TensorDict({"log_probs": log_probs(data["input_ids"], 7)}, batch_size=len(part))
            tq.kv_batch_put(keys=part.keys, partition_id=part.partition_id, fields=values)
        return batch

    def compute_log_prob(self, batch):
        import transfer_queue as tq
        from tensordict import TensorDict

        self.measured += 1
        for part, data in zip(batch.chunk(self.ranks), self.fetch(batch), strict=True):
            values = TensorDict({"log_probs": log_probs(data["input_ids"], 3)}, batch_size=len(part))
            tq.kv_batch_put(keys=part.keys, partition_id=part.partition_id, fields=values)

    def update_actor(self, batch):
        """`TrainingWorker.train_mini_batch` of every rank, one mini-batch after the other."""
        from verl.utils import tensordict_utils as tu
        from verl.utils.metric import Metric
        from verl.utils.py_functional import append_to_dict

        self.during()
        if self.fail == "update":
            raise RuntimeError("update failed")
        update, metrics, iterators = SimpleNamespace(meta=batch, minibatches=[]), {}, []
        self.updates.append(update)
        for data in self.fetch(batch):
            size, epochs = tu.pop(data, key="mini_batch_size"), tu.pop(data, key="epochs")
            kwargs = {"seed": tu.pop(data, key="seed"), "dataloader_kwargs": tu.pop(data, key="dataloader_kwargs")}
            iterators.append(tu.make_iterator(data, mini_batch_size=size // self.ranks, epochs=epochs, **kwargs))
        for parts in zip(*iterators, strict=True):
            tokens = sum(int(part["loss_mask"].sum()) for part in parts)
            reported = [self._train(part, tokens) for part in parts]
            gathered = {name: [rank[name] for rank in reported] for name in reported[0]}  # KeyError: one rank alone
            append_to_dict(metrics, {name: Metric.aggregate_dp(values) for name, values in gathered.items()})
            update.minibatches.append(parts)
        return {"metrics": metrics | {"mfu": [0.5]}}

    def _train(self, data, tokens):
        from verl.utils import tensordict_utils as tu
        from verl.utils.py_functional import append_to_dict
        from verl.workers.engine.utils import prepare_micro_batches

        tu.assign_non_tensor(data, batch_num_tokens=tokens, dp_size=self.ranks)
        tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=self.micro_batch)
        metrics, gradients = {}, []
        for micro in prepare_micro_batches(data)[0]:
            values = log_probs(micro["input_ids"], 3).values().requires_grad_()
            offsets = micro["input_ids"].offsets()
            output = torch.nested.nested_tensor_from_jagged(values, offsets=offsets)
            loss, found = self.loss(model_output={"log_probs": output, "entropy": output * -0.5}, data=micro)
            loss.backward()
            gradients += [part.abs().sum() for part in values.grad.split(offsets.diff().tolist())]
            append_to_dict(metrics, found)
        data["gradient"] = torch.stack(gradients)
        return {name: value for name, value in metrics.items() if name != "kl_coef"}


def put_answers(queue, step):
    """What AgentLoopWorkerTQ puts for prompts, with uneven lengths; one session of the second prompt has failed."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    generator = torch.Generator().manual_seed(step)
    length = lambda most: int(torch.randint(1, most, (1,), generator=generator))  # noqa: E731
    for prompt in range(PROMPTS + 1):
        uid, asked, keys, fields, tags = f"step{step}prompt{prompt}", torch.arange(length(9)), [], [], []
        for session in range(ANSWERS - (prompt == 1)):
            answer = torch.randint(5, 90, (length(30),), generator=generator)
            mask, ids = torch.ones_like(answer), torch.cat([asked, answer])
            scores = torch.zeros(len(answer)).index_fill_(0, torch.tensor([len(answer) - 1]), float(session % 2))
            row = {"prompts": asked, "responses": answer, "input_ids": ids, "position_ids": torch.arange(len(ids))}
            row |= {"response_mask": mask, "loss_mask": mask, "rm_scores": scores}
            row |= {"rollout_log_probs": -torch.rand(len(answer), generator=generator)}
            row |= {"uid": uid, "session_id": session, "num_turns": 2, "multi_modal_inputs": {}, "extra_fields": {}}
            keys.append(f"{uid}_{session}_0")
            fields.append(row)
            lengths = {"prompt_len": len(asked), "response_len": len(answer), "seq_len": len(ids)}
            versions = {"global_steps": step, "min_global_steps": step - 1, "max_global_steps": step}
            tags.append({"status": "success"} | lengths | versions)
        queue.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
        # Older prompts are trained on first: the order is the same in every run. One more is still being sampled.
        status = {"status": "finished" if prompt < PROMPTS else "running", "global_steps": step - PROMPTS + prompt}
        queue.kv_put(key=uid, partition_id="train", tag={"is_prompt": True} | status)


@pytest.fixture
def make(queue, stock_config, inputs, tmp_path):
    """A trainer of a mode, as its class makes it, with its workers; the queue is emptied afterwards."""
    import json

    from verl.trainer.ppo.v1 import get_trainer_cls

    from fgrpo_plugin.host.driver.preference_source import PreferenceSource
    from fgrpo_plugin.host.settings.switch import complete
    from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

    tokenizer, file = build_tokenizer(), tmp_path / "prefs.jsonl"
    save_model(build_model(tokenizer, 0), tokenizer, tmp_path / "model")
    pairs = [{"prompt": f"{i}+1=", "chosen": "1" * (i % 9 + 1), "rejected": f"{i}"} for i in range(20)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def made(mode, ranks, estimator="f_hal", *overrides):
        preference = [
            f"+data.preference.files=[{file}]",
            f"+data.preference.batch_size={PREFERENCES}",
            f"+data.preference.cache_dir={tmp_path / 'cache'}",
            f"+actor_rollout_ref.actor.policy_loss.f_divergence.lam={LAM}",
        ]
        config = stock_config(
            *inputs,
            f"algorithm.adv_estimator={estimator}",
            *(preference if estimator == "f_hal" else []),
            f"trainer.v1.trainer_mode={mode}",
            f"trainer.v1.separate_async.parameter_sync_step={PROMPTS // MINIBATCH}",
            "trainer.v1.separate_async.hybrid_rollout.enable_switch=false",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
            f"trainer.n_gpus_per_node={ranks}",
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={MINIBATCH}",
            "actor_rollout_ref.actor.use_dynamic_bsz=false",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={ranks}",  # one rank: one row, so one half alone
            "actor_rollout_ref.actor.calculate_entropy=true",
            "actor_rollout_ref.actor.use_kl_loss=true",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
            *overrides,
        )
        complete(config)
        trainer = get_trainer_cls(mode)(config)
        trainer.tokenizer, trainer.global_steps, trainer.total_training_steps = tokenizer, 1, 3
        trainer.timing_raw, trainer.ref_in_actor, trainer.curr_step_profile = {}, False, False
        trainer.current_mode = None  # separate_async: its colocated engines are never lent to sampling here
        trainer.actor_rollout_wg = trainer.ref_policy_wg = Workers(config, ranks)
        trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: ranks)
        trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
        trainer.checkpoint_manager = SimpleNamespace(abort_replicas=lambda: None, sleep_replicas=lambda: None)
        trainer.prepare_step = lambda: put_answers(queue, trainer.global_steps)
        if estimator == "f_hal":
            trainer.preferences = PreferenceSource(config, tokenizer)
        return trainer, trainer.actor_rollout_wg

    yield made
    for partition, items in (queue.kv_list() or {}).items():
        if items:
            queue.kv_clear(keys=list(items), partition_id=partition)


def step(trainer, queue):
    """One global step as `fit` makes it: the batch that it returns, and what it logs."""
    metrics = {}
    trainer.on_step_begin()
    batch = trainer.step(metrics, trainer.timing_raw)
    trainer._compute_metrics(batch, metrics, {"step": 1.0, "gen": 1.0}, trainer.global_steps, 0)
    queue.kv_clear(keys=batch.keys, partition_id=batch.partition_id)
    trainer.global_steps += 1
    return batch, metrics


def names(queue):
    return {key for items in (queue.kv_list() or {}).values() for key in items}


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
        # One call of the workers, so one step of the learning rate, for each update of the host.
        assert len(workers.updates) == parts // per_update
        assert trainer.actor_rollout_wg is workers
        assert metrics["actor/f_divergence/lam"] == pytest.approx(lam)
        share = PREFERENCES / (PREFERENCES + MINIBATCH * ANSWERS)
        assert metrics["actor/f_divergence/preference_share"] == pytest.approx(share)
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


def check_update(update, drawn, padding, ranks, lam):
    """What the workers were given, mini-batch by mini-batch and rank by rank."""
    size = update.meta.extra_info["mini_batch_size"] // ranks
    chunks = [part.keys for part in update.meta.chunk(ranks)]
    for j, parts in enumerate(update.minibatches):
        keys = [chunk[j * size : (j + 1) * size] for chunk in chunks]
        counted = len([key for rank in keys for key in rank if key.startswith("step")])
        assert counted == MINIBATCH * ANSWERS - sum(key in padding for rank in keys for key in rank)
        for rank, part in enumerate(parts):
            for name in (*ENGINE_FIELDS, *ROW_FIELDS, *PREFERENCE_FIELDS):
                assert len(part[name]) == size, name
            side = part["f_divergence_side"]
            off = [key.startswith("preference") for key in keys[rank]]
            assert (side != 0).tolist() == off and sum(off) == PREFERENCES // ranks
            assert int((side > 0).sum()) == int((side < 0).sum())
            assert any(off[: size // 2]) and any(off[size // 2 :])  # mixed
            assert part["f_divergence_lam"].tolist() == pytest.approx([lam] * size)
            found = Counter()
            for i, key in enumerate(keys[rank]):
                count, gradient = float(part["f_divergence_count"][i]), float(part["gradient"][i])
                lengths = [len(part[name][i]) for name in ("responses", "response_mask", "loss_mask", "ref_log_prob")]
                assert set(lengths) == {lengths[0]} and len(part["advantages"][i]) == lengths[0]
                tokens = part["prompts"][i].tolist() + part["responses"][i].tolist()
                assert part["input_ids"][i].tolist() == tokens and len(part["position_ids"][i]) == len(tokens)
                assert torch.equal(part["ref_log_prob"][i], reference(part["input_ids"][i], lengths[0]))
                mask = int(part["response_mask"][i].sum())
                if off[i]:
                    assert mask == 0 and count == PREFERENCES / 2 and gradient > 0
                    assert float(part["f_divergence_tokens"][i]) == lengths[0]
                    found[tuple(tokens), float(side[i]) > 0] += 1
                elif key in padding:
                    assert mask == 0 and gradient == 0 and float(part["f_divergence_advantage"][i]) == 0
                else:
                    assert mask == lengths[0] and count == counted and gradient > 0
                    assert float(part["f_divergence_fresh"][i]) == (j == 0)
            assert found == Counter((tuple(r.prompt_ids + r.response_ids), r.desirable) for r in drawn[j][rank])


def reference(input_ids, length):
    """The response's part of what the reference gives."""
    ids = torch.nested.as_nested_tensor([input_ids], layout=torch.jagged)
    return log_probs(ids, 7).values()[-length - 1 : -1]


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
    """The host wakes the engine at the end of a step and validates after it."""
    import json

    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    held_out = [{"prompt": f"{i}-1=", "chosen": f"{i}{i}", "rejected": "7" * (i % 4 + 1)} for i in range(9)]
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
        assert found["val-core/reward"] == 0.5 and len(measured) == (0 if len(seen) == 1 else 3)
    assert seen == [0, 1, 2] and not any(key.startswith("preference") for key in names(queue))
    beta, right = trainer.f_divergence.beta, []
    for plus, minus in zip(*[iter(trainer.preferences.held_out)] * 2, strict=True):
        rewards = []
        for row in (plus, minus):
            ids = torch.nested.as_nested_tensor([torch.tensor(row.prompt_ids + row.response_ids)], layout=torch.jagged)
            change = (log_probs(ids, 3) - log_probs(ids, 7)).values()[-len(row.response_ids) - 1 : -1]
            rewards.append(beta * float(change.sum()))
        right.append(1.0 if rewards[0] > rewards[1] else 0.5 if rewards[0] == rewards[1] else 0.0)
    assert measured["val-preference/accuracy"] == pytest.approx(sum(right) / 9)
