"""What a checkpoint says of its run: settings as they came out, and nothing that is private."""

import json
from pathlib import Path

import pytest

from fgrpo_plugin.host.settings.record import (
    RECORD_FILE,
    _content,
    changed_settings,
    public_name,
    report_changes,
    run_record,
)
from fgrpo_plugin.host.settings.switch import complete
from fgrpo_plugin.pinned import VERL
from tests.support.overrides import HAL, F

ACTOR = "actor_rollout_ref.actor"


def test_it_holds_what_presets_and_defaults_came_to(stock_config, inputs, preferences):
    schedule = f"{F}.lam={{schedule: linear, start: 0.8, end: 0.2}}"
    config = stock_config(*inputs, HAL, preferences, schedule, f"{F}.preset=paper", f"{ACTOR}.optim.lr=3e-6")
    complete(config)
    found = run_record(config, 3, 5)
    assert json.loads(json.dumps(found)) == found
    assert found["algorithm"] == "f_hal" and found["step"] == 3 and found["versions"]["verl"] == VERL
    settings = found["f_divergence"]
    assert (settings["preset"], settings["gamma"], settings["scale"], settings["beta"]) == ("paper", 0.0, "paper", 0.1)
    assert found["lam"] == pytest.approx(0.5)
    assert found["actor"]["optim.lr"] == 3e-6 and found["actor"]["optim.clip_grad"] == 1.0
    assert found["rollout"]["n"] == 4
    assert found["model"].endswith("/model") and found["model_is_local"]
    assert found["data"]["train_files"][0].endswith("/rows.parquet")
    assert found["preference"]["files"][0].endswith("/prefs.jsonl")
    assert "lora" not in found


def test_another_content_under_the_same_name_is_told_at_the_next_start_and_not_before(stock_config, inputs, tmp_path):
    def record(file: Path) -> dict:
        config = stock_config(*inputs, "algorithm.adv_estimator=grpo", f"data.train_files=[{file}]")
        return run_record(config, 1, 1)

    file = tmp_path / "rows.parquet"
    file.write_bytes(b"one")
    first = record(file)
    assert first["data"]["train_content"] == ["3 bytes, 7692c3ad3540"]  # SHA-256 of "one"
    file.write_bytes(b"two")
    assert record(file) == first  # the run that has read it
    _content.cache_clear()  # as in another process
    (tmp_path / RECORD_FILE).write_text(json.dumps(first))
    assert changed_settings(tmp_path, record(file)) == [
        'data.train_content: ["3 bytes, 7692c3ad3540"] -> ["3 bytes, 3fc4ccfe7458"]'
    ]
    assert record(tmp_path / "none.parquet")["data"]["train_content"] == [None]


def test_a_secret_and_a_users_folder_stay_out(stock_config, inputs, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-environment")
    given = ["+trainer.wandb_key=secret-of-the-run", "+reward.api_key=secret-of-the-judge"]
    config = stock_config(*inputs, "algorithm.adv_estimator=f_grpo", *given)
    complete(config)
    found = json.dumps(run_record(config, 1, 1))
    assert "secret" not in found and str(tmp_path) not in found and tmp_path.name not in found


def test_a_resumed_run_says_what_its_checkpoint_had_otherwise(stock_config, inputs, preferences, tmp_path):
    def record(*words: str, step: int = 3) -> dict:
        config = stock_config(*inputs, HAL, preferences, *words)
        complete(config)
        return run_record(config, step, 5)

    schedule = f"{F}.lam={{schedule: linear, start: 0.8, end: 0.2}}"
    (tmp_path / RECORD_FILE).write_text(json.dumps(record(schedule, f"{ACTOR}.optim.lr=3e-6")))
    assert changed_settings(tmp_path, record(schedule, f"{ACTOR}.optim.lr=3e-6", step=4)) == []
    changed = changed_settings(tmp_path, record(f"{F}.beta=0.2", f"{F}.lam=0.3", f"{ACTOR}.optim.lr=1e-6"))
    assert set(changed) == {
        "f_divergence.beta: 0.1 -> 0.2",
        'f_divergence.lam.schedule: "linear" -> null',
        "f_divergence.lam.start: 0.8 -> null",
        "f_divergence.lam.end: 0.2 -> null",
        "actor.optim.lr: 3e-06 -> 1e-06",
    }


@pytest.mark.parametrize("text", ["{", "null", "3", '"x"', "[]", "{}", "\x00", "[" * 3000 + "]" * 3000])
def test_a_record_that_says_nothing_is_as_none(tmp_path, text):
    (tmp_path / RECORD_FILE).write_text(text)
    assert changed_settings(tmp_path, {"f_divergence": {"beta": 0.1}}) == []
    assert changed_settings(tmp_path / "of_another_algorithm", {}) == []


def test_an_older_record_is_compared_in_what_it_has_and_on_one_line(tmp_path, capsys):
    old = {
        "versions": {"verl": "0.8"},
        "algorithm": "f\nhal",
        "data": {"train_files": ["a" * 99]},
        "actor": {"optim.lr": 1},
    }
    (tmp_path / RECORD_FILE).write_text(json.dumps(old))
    now = {
        "versions": {"verl": VERL},
        "algorithm": "f_hal",
        "data": {"train_files": []},
        "actor": {"optim.lr": 2, "new": 3},
    }
    report_changes(tmp_path, now)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(
        'from here on: algorithm: "f\\nhal" -> "f_hal"; data.train_files: ["' + "a" * 75 + "... -> []"
    )
    assert "which FSDP restores with it" in second and second.endswith("no effect there: actor.optim.lr: 1 -> 2")
    report_changes(tmp_path / "none", now)
    assert not capsys.readouterr().out


def test_an_optimiser_that_is_restored_has_its_checkpoints_learning_rate():
    """Why those settings stand apart: what torch restores, which is what verl's FSDP checkpoint hands it."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    then, now = (torch.optim.AdamW([weight], lr=lr) for lr in (3e-6, 1e-6))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0) for optimiser in (then, now)]
    now.load_state_dict(then.state_dict())
    schedules[1].load_state_dict(schedules[0].state_dict())
    now.step()
    schedules[1].step()
    assert now.param_groups[0]["lr"] == 3e-6


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-1.5B"),
        ("/home/alice/model", "model"),
        ("/home/alice/data/gsm8k/train.parquet", "gsm8k/train.parquet"),
        ("/mnt/lustre/home/alice/train.parquet", "train.parquet"),
        ("/data/models/tiny", "models/tiny"),
        ("/tiny", "tiny"),
        ("/cache/hub/models--Qwen--Qwen2.5-0.5B/snapshots/060db", "Qwen/Qwen2.5-0.5B"),
        ("https://alice:token@example.org/data.parquet?key=1", "https://example.org/data.parquet"),
        ("hdfs://cluster/data/train.parquet", "hdfs://cluster/data/train.parquet"),
        (None, None),
    ],
)
def test_a_path_keeps_what_others_may_read(path, name):
    assert public_name(path) == name


def test_an_adapter_that_was_given_says_what_scales_it(stock_config, inputs, tmp_path):
    adapter = tmp_path / "start"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "use_rslora": True, "revision": None}))
    model = "actor_rollout_ref.model"
    given = [f"{model}.lora_rank=8", f"{model}.lora_alpha=16", f"{model}.lora_adapter_path={adapter}"]
    config = stock_config(*inputs, "algorithm.adv_estimator=grpo", *given)
    found = run_record(config, 1, 1)["lora"]
    assert found["lora_rank"] == 8 and found["lora_alpha"] == 16
    assert found["adapter_config"] == {"r": 8, "use_rslora": True}
