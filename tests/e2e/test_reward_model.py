"""A sequence classifier that verl serves as its reward model scores the responses of f-GRPO and f-HAL on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tests.e2e.host_runs import ROWS, STEPS, F, Host, steps

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PROMPTS, SAMPLES = 8, 8
LOSS = "actor_rollout_ref.actor.policy_loss.f_divergence"


@pytest.fixture(scope="module")
def classifier(host, tmp_path_factory) -> Path:
    """A small reward model of random weights, with a head that spreads its scores."""
    tokenizer = AutoTokenizer.from_pretrained(host.model)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    torch.nn.init.normal_(model.score.weight, std=1.0)
    folder = tmp_path_factory.mktemp("reward_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _scores(classifier: Path, rows: list[dict]) -> list[float]:
    """What Transformers' own forward pass says of the chats that verl's dump shows."""
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    scores = []
    for row in rows:
        chat = [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        with torch.no_grad():
            scores.append(model(**tokenizer(text, return_tensors="pt")).logits.item())
    return scores


@pytest.mark.parametrize(("name", "lam"), [("judged", 0), ("judged_hybrid", 0.5)])
def test_the_rewards_are_the_classifiers(host: Host, classifier, name, lam):
    run = host.finish(
        name,
        "reward.custom_reward_function.path=null",
        "reward.reward_model.enable=true",
        f"reward.reward_model.model_path={classifier}",
        "reward.reward_model.rollout.name=vllm",
        "reward.reward_model.rollout.tensor_model_parallel_size=1",
        "reward.reward_model.rollout.dtype=float32",
        "reward.reward_model.rollout.free_cache_engine=false",
        "+reward.reward_model.rollout.enable_sleep_mode=false",
        "reward.reward_model.rollout.prompt_length=64",
        "reward.reward_model.rollout.response_length=64",
        "+reward.reward_model.rollout.engine_kwargs.vllm.worker_extension_cls=fgrpo_plugin.host.cpu.worker.CpuWorkerExtension",
        "+reward.reward_model.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=268435456",
        "+reward.reward_model.rollout.engine_kwargs.vllm.distributed_executor_backend=uni",
        f"trainer.rollout_data_dir={host.folder / name / 'rollouts'}",
        f"{LOSS}.lam={lam}",
    )
    found = dict(steps(run))
    assert list(found) == list(range(1, STEPS + 1))
    for step, data in found.items():
        rows = [json.loads(line) for line in (run / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
        assert len(rows) == PROMPTS * SAMPLES and len({row["score"] for row in rows}) > SAMPLES
        same = [abs(row["score"] - score) < 1e-4 for row, score in zip(rows, _scores(classifier, rows), strict=True)]
        # The dump leaves special tokens out, of which a model of random weights samples some in every fourth response.
        assert sum(same) > 24
        assert data["critic/score/mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows), abs=1e-5)
        assert (F + "preference_share" in data) == bool(lam)
        if lam:
            assert data[F + "preference_share"] == ROWS / (ROWS + PROMPTS * SAMPLES)
