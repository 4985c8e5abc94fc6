"""The model card says what is known, and that the rest is not."""

import pytest
import yaml

from fgrpo_plugin.export.card import model_card
from tests.export.conftest import RECORD

FULL = {"step": 7, "engine": "FSDP", "form": "full weights", "dtype": "bfloat16"}


def rows(card: str) -> dict[str, str]:
    table = [line.split(" | ") for line in card.splitlines() if line.startswith("| ") and " | " in line]
    return {name.removeprefix("| "): value.removesuffix(" |") for name, value in table}


def head(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_it_says_how_the_model_was_made():
    record = {**RECORD, "model": "Qwen/Qwen2.5-0.5B", "model_is_local": False}
    card = model_card(record, base_model="Qwen/Qwen2.5-0.5B", hub="Qwen/Qwen2.5-0.5B", **FULL)
    found = rows(card)
    assert found["Base model"] == "Qwen/Qwen2.5-0.5B" and found["Algorithm"] == "f-GRPO"
    expected = {"preset": "stable", "divergence": "pearson", "beta": "0.1", "gamma": "0.0", "Learning rate": "0.001"}
    assert {name: found[name] for name in expected} == expected
    assert found["Step"] == "7 of 10" and found["Weights"] == "full weights, bfloat16"
    assert found["Batch"] == "4 prompts a step, 4 a mini-batch, 4 responses a prompt"
    assert found["Data"] == "gsm8k/train.parquet" and "verl 0.9.1" in found["Versions"]
    assert "lambda" not in found and "2602.05946" in card and "not recorded" not in card
    assert head(card)["base_model"] == "Qwen/Qwen2.5-0.5B" and head(card)["library_name"] == "transformers"
    assert "f-grpo" in head(card)["tags"]


def test_lambda_preferences_and_lora_are_said_where_there_are_any():
    schedule = {"schedule": "linear", "start": 0.8, "end": 0.2}
    record = {**RECORD, "algorithm": "f_hal", "lam": 0.5, "preference": {"files": ["pairs.jsonl"]}}
    record |= {"f_divergence": {**RECORD["f_divergence"], "lam": schedule}, "lora": {"lora_rank": 8, "lora_alpha": 16}}
    card = model_card(record, base_model="tiny/model", **{**FULL, "form": "LoRA adapter"})
    found = rows(card)
    assert found["lambda"].startswith("0.5 at this step, of {'schedule': 'linear'")
    assert found["Preference data"] == "pairs.jsonl" and found["LoRA"] == "rank 8, alpha 16"
    assert head(card)["library_name"] == "peft" and "base_model" not in head(card)  # a local folder is no name
    assert "PeftModel.from_pretrained" in card


@pytest.mark.parametrize("hub, linked", [("Qwen/Q", True), ("gpt2", True), ("hdfs://a/b", False), (None, False)])
def test_a_model_of_a_hub_alone_is_linked(hub, linked):
    card = model_card({}, base_model="models/q", hub=hub, **{**FULL, "form": "LoRA adapter"})
    assert head(card).get("base_model") == (hub if linked else None)
    assert f'from_pretrained("{hub if linked else "path/to/the/base/model"}")' in card


def test_what_is_not_known_is_said_so():
    card = model_card({}, base_model=None, **{**FULL, "step": None})
    found = rows(card)
    for name in ("Base model", "Step", "Algorithm", "Learning rate", "Data", "Versions"):
        assert found[name] == "not recorded in the checkpoint", name
    assert "it was not saved by this plugin" in card and "base_model" not in head(card)
    assert "beta" not in found
