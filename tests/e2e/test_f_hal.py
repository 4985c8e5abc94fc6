"""f-HAL through the stock verl: both halves in one update, interrupted and resumed; and preference data alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fgrpo_plugin.host.contract import VALIDATION
from fgrpo_plugin.host.metric_table import METRICS
from fgrpo_plugin.quickstart.model import build_tokenizer
from tests.e2e.host_runs import DRIVER, ROWS, SAVED, STEPS, F, Host, ours, parameters, state, steps, unequal

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def resumed(host, uninterrupted) -> Path:
    """Killed twice after the step that follows a checkpoint, each time started again with the same command.

    First its rollout server, then the command itself; `killed` beside it holds the log of the first part.
    """
    run = host.part_dies("rollout server 0", SAVED + 1, "interrupted")
    log = (run / "train.log").read_text()
    assert "fgrpo-plugin: rollout server 0 has died, and the run ends here" in log
    assert "PartDied: rollout server 0 has died" in log  # what the command itself ends with
    assert not (run / "checkpoints" / f"global_step_{STEPS}").exists()
    (run.parent / "killed").mkdir()
    shutil.copy(run / "metrics.jsonl", run.parent / "killed")
    host.part_dies(DRIVER, SAVED + 1, "interrupted")
    return host.finish("interrupted")


def test_both_halves_are_active_in_every_update(uninterrupted):
    found = steps(uninterrupted)
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    for _, step in found:
        assert step[F + "lam"] == 0.5
        assert step[F + "preference_share"] == ROWS / (ROWS + 8 * 8)
        assert step[F + "preference_desirable_share"] == 0.5
        assert step[F + "aligned_share"] > 0 and step["actor/grad_norm"] > 0
        # Rewards and lengths that verl reports are those of the 64 on-policy rows.
        assert 0 < step["critic/score/mean"] < 1
        assert step["training/rollout_probs_diff_mean"] < 1e-3
        assert "timing_s/join_preferences" in step
    first, last = found[0][1], found[-1][1]
    assert abs(first[F + "preference_distance_desirable"]) < 1e-3  # the policy is the reference
    assert last[F + "preference_distance_desirable"] > last[F + "preference_distance_undesirable"]
    assert last[F + "preference_loss"] < 0.5 * first[F + "preference_loss"] and F + "on_policy_loss" in last
    # 64 on-policy rows of 8 tokens or less: no preference row is counted among verl's tokens.
    assert last["response_length/max"] <= 8 and last["perf/total_num_tokens"] < 64 * (64 + 8)


def test_every_step_logs_what_the_table_of_metrics_names(uninterrupted):
    for _, step in steps(uninterrupted):
        assert ours(step) == {metric.name for metric in METRICS if not metric.name.startswith(VALIDATION)}


def test_two_runs_of_a_seed_are_equal_to_the_last_bit(uninterrupted, resumed):
    killed = resumed.parent / "killed"
    assert [step for step, _ in steps(killed)] == [1, 2, 3]
    assert unequal(uninterrupted, killed) == {}


def test_interrupted_and_resumed_it_is_the_uninterrupted_run_to_the_last_bit(uninterrupted, resumed):
    assert unequal(uninterrupted, resumed) == {}
    whole, again = parameters(uninterrupted, STEPS), parameters(resumed, STEPS)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    before = parameters(uninterrupted, SAVED)
    assert max(float((whole[name] - before[name]).abs().max()) for name in whole) > 1e-4


def test_interrupted_and_resumed_it_has_seen_what_the_uninterrupted_run_has(uninterrupted, resumed):
    assert "Resuming from" in (resumed / "train.log").read_text()
    assert [step for step, _ in steps(resumed)] == [3, 4]  # step 3 was lost, and done again; verl's log starts anew
    for step in (SAVED, STEPS):
        assert state(resumed, step) == state(uninterrupted, step)  # with the hash of every row drawn, in order
    assert state(uninterrupted, STEPS)["drawn"] == [STEPS * ROWS // 2]  # pairs
    assert state(uninterrupted, SAVED)["history"] != state(uninterrupted, STEPS)["history"]


def test_reference_log_probs_were_computed_in_the_first_run_alone(uninterrupted, resumed):
    assert steps(uninterrupted)[0][1][F + "preference_cache_hits"] == 0.0
    assert {data[F + "preference_cache_hits"] for _, data in steps(resumed)} == {1.0}


@pytest.mark.long
def test_f_grpo_killed_and_resumed_is_the_uninterrupted_run_to_the_last_bit(host):
    f_grpo = "actor_rollout_ref.actor.policy_loss.f_divergence.lam=0"
    whole = host.finish("f_grpo", f_grpo)
    host.kill_after(SAVED + 1, "killed_f_grpo", f_grpo)
    run = host.finish("killed_f_grpo", f_grpo)
    assert [step for step, _ in steps(run)] == [3, 4]
    assert "actor/f_divergence/preference_share" not in steps(run)[0][1]
    assert unequal(whole, run) == {}
    expected, found = parameters(whole, STEPS), parameters(run, STEPS)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def _offline(host: Host, name: str, *overrides: str) -> Path:
    rows = [{"prompt": f"{a}+11=", "chosen": str(a + 11), "rejected": str(a + 12)} for a in range(20, 40)]
    (host.folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return host.finish(
        name,
        "actor_rollout_ref.actor.policy_loss.f_divergence.lam=1",
        "data.preference.keep_rollout=false",
        f"data.preference.val_files=[{host.folder}/held_out.jsonl]",
        "data.train_files=null",
        "data.val_files=null",
        "trainer.test_freq=2",
        *overrides,
    )


@pytest.mark.long
def test_preference_data_alone_train_without_a_rollout_engine(host):
    run = _offline(host, "offline")
    assert "vLLMHttpServer" not in (run / "train.log").read_text()
    found = steps(run)
    assert len(found) == STEPS
    assert all(data[F + "preference_share"] == 1.0 for _, data in found)
    assert found[-1][1][F + "preference_implicit_reward_margin"] > 0
    held_out = {name for name in ours(found[-1][1]) if name.startswith(VALIDATION)}
    assert held_out == {metric.name for metric in METRICS if metric.name.startswith(VALIDATION)}
    assert 0 <= found[-1][1]["val-preference/accuracy"] <= 1
    assert {data[F + "on_policy_slope_share"] for _, data in found} == {0.0} and found[0][1][F + "preference_slope"] > 0
    assert state(run, STEPS)["drawn"] == [STEPS * ROWS // 2]


@pytest.mark.long
def test_with_lora_the_reference_is_the_adapter_switched_off(host):
    """Rows that are drawn after the adapter has moved get the base model's log-probs all the same."""
    from transformers import AutoModelForCausalLM

    from fgrpo_plugin.preference.files import read_preferences
    from fgrpo_plugin.preference.reference_cache import ReferenceCache
    from fgrpo_plugin.preference.tokens import encode

    model = "actor_rollout_ref.model"
    cache = host.folder / "lora_cache"
    lora = [f"{model}.lora_rank=4", f"{model}.lora_alpha=8", f"{model}.target_modules=all-linear"]
    run = _offline(host, "lora", *lora, f"data.preference.cache_dir={cache}", "actor_rollout_ref.actor.optim.lr=0.01")
    assert steps(run)[-1][1][F + "preference_implicit_reward_margin"] > 1e-3  # the adapter has moved
    (folder,) = (path.parent for path in cache.glob("*/key.json"))
    known = ReferenceCache(cache, json.loads((folder / "key.json").read_text()))
    base = AutoModelForCausalLM.from_pretrained(host.model, dtype=torch.float32)
    found = read_preferences([host.folder / "shared" / "data" / "preferences.parquet"])
    rows = encode(found.rows, build_tokenizer(), max_prompt_length=64, max_response_length=8).rows
    rows = [row for row in rows if known.get(row) is not None]
    assert len(rows) >= STEPS * ROWS * 0.5
    for row in rows:
        logits = base(torch.tensor([row.prompt_ids + row.response_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(row.response_ids).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(known.get(row), expected, atol=1e-4, rtol=0)


@pytest.mark.long
def test_the_mode_colocate_async_joins_preference_rows_too(host):
    run = host.finish("colocate", "trainer.v1.trainer_mode=colocate_async", deterministic=False)
    found = steps(run)
    assert len(found) == STEPS
    for _, step in found:
        assert step[F + "preference_share"] == ROWS / (ROWS + 8 * 8)
    assert found[-1][1][F + "preference_loss"] < 0.5 * found[0][1][F + "preference_loss"]
    assert state(run, STEPS)["drawn"] == [STEPS * ROWS // 2]
