"""Updates on a real queue: rows put into it, workers that record what they get, and what each update must hold."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fgrpo_plugin.host.contract import ENGINE_FIELDS, PREFERENCE_FIELDS, ROW_FIELDS

LAM = "{schedule: linear, start: 0.2, end: 0.8, steps: 3}"
PROMPTS, ANSWERS, MINIBATCH, PREFERENCES = 4, 4, 2, 4  # in a step, to a prompt, prompts in one, preference rows in one


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
