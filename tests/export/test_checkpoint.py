"""Which checkpoint a name stands for; what is none, or not whole, is one sentence."""

import json
from pathlib import Path

import pytest

from fgrpo_plugin.export.checkpoint import TRACKER, find_checkpoint
from fgrpo_plugin.manifest import mark_unfinished, write_manifest


def fsdp(actor: Path, *, architecture: str = "Qwen2ForCausalLM") -> Path:
    """The names of an FSDP checkpoint: this module reads no weights."""
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    (actor / "model_world_size_1_rank_0.pt").touch()
    return actor


def megatron(actor: Path, *, role: str = "actor") -> Path:
    (actor / "model" / "huggingface").mkdir(parents=True)
    (actor / "model" / "huggingface" / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    (actor / "ckpt_contents.json").write_text(json.dumps({"role": role}))
    return actor


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_of_a_run_the_newest_that_verl_finished_is_taken(tmp_path, place):
    run = tmp_path / place
    for step in (5, 10, 15):
        fsdp(run / f"global_step_{step}" / "actor")
    assert find_checkpoint(tmp_path).step == 15
    (run / TRACKER).write_text("10")
    found = find_checkpoint(tmp_path)
    assert found.step == 10 and found.newer == (15,) and found.engine == "FSDP"
    assert find_checkpoint(tmp_path, 5).actor == run / "global_step_5" / "actor"
    (run / TRACKER).write_text("20")  # removed since, or copied without it
    assert find_checkpoint(tmp_path).step == 15


def test_a_step_of_which_verl_has_removed_the_actor_is_passed_over(tmp_path):
    (tmp_path / "global_step_10").mkdir()
    fsdp(tmp_path / "global_step_20" / "actor")
    fsdp(tmp_path / "global_step_30" / "critic")
    assert find_checkpoint(tmp_path).step == 20
    with pytest.raises(ValueError, match=r"global_step_10 holds no actor folder .*max_actor_ckpt_to_keep"):
        find_checkpoint(tmp_path, 10)
    with pytest.raises(ValueError, match=r"global_step_30 holds a critic alone; name a step that has an actor folder"):
        find_checkpoint(tmp_path / "global_step_30")


def test_how_the_weights_lie_there_is_told(tmp_path):
    actor = megatron(tmp_path / "bridge")
    weights = actor / "model" / "huggingface" / "model.safetensors"
    with pytest.raises(ValueError, match=r"holds no weights; a run saves them with model in .*save_contents\.$"):
        find_checkpoint(actor)
    (actor / "model" / "dist_ckpt").mkdir()
    (actor / "model" / "dist_ckpt" / ".metadata").touch()
    assert find_checkpoint(actor).form == "megatron"
    weights.touch()
    found = find_checkpoint(actor)
    assert (found.form, found.engine, found.step) == ("huggingface", "Megatron", None)
    (weights.parent / "adapter").mkdir()
    (weights.parent / "adapter" / "adapter_config.json").touch()
    assert find_checkpoint(actor).form == "adapter"
    only_hf = fsdp(tmp_path / "hf_model")
    (only_hf / "model_world_size_1_rank_0.pt").unlink()
    with pytest.raises(ValueError, match=r"holds no weights"):
        find_checkpoint(only_hf)
    (only_hf / "huggingface" / "model.safetensors").touch()
    assert find_checkpoint(only_hf).form == "huggingface"


def test_what_is_missing_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"^RUN=.*/none: there is no such folder; name a run's checkpoint folder"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no checkpoint \(global_step_N\); .*trainer.save_freq is above 0\.$"):
        find_checkpoint(tmp_path)
    actor = fsdp(tmp_path / "global_step_1" / "actor")
    with pytest.raises(ValueError, match=r"--step=2 with RUN=.*, which is one checkpoint already; leave --step out\.$"):
        find_checkpoint(actor, 2)
    assert find_checkpoint(actor, 1).step == 1
    for content in ('{"world_size": "1"}', '{"world_size": 0}', '{"world_size": true}', '{"world'):
        (actor / "fsdp_config.json").write_text(content)
        with pytest.raises(ValueError, match=r"is half-written: fsdp_config.json, .* is missing or spoilt; choose an"):
            find_checkpoint(actor)
    (actor / "fsdp_config.json").unlink()
    with pytest.raises(ValueError, match=r"is half-written: fsdp_config.json, .* is missing or spoilt; choose an"):
        find_checkpoint(actor)
    manifest = megatron(tmp_path / "global_step_2" / "actor") / "ckpt_contents.json"
    manifest.unlink()
    with pytest.raises(ValueError, match=r"is half-written: neither fsdp_config.json nor ckpt_contents.json"):
        find_checkpoint(tmp_path, 2)
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "global_step_3" / "actor").mkdir()
    with pytest.raises(ValueError, match="is half-written"):
        find_checkpoint(tmp_path, 3)


def test_a_damaged_file_is_named_unless_an_export_does_not_read_it(tmp_path):
    place = tmp_path / "global_step_4"
    actor = fsdp(place / "actor")
    for name in ("optim_world_size_1_rank_0.pt", "extra_state_world_size_1_rank_0.pt"):
        (actor / name).write_bytes(b"optimiser")
    (place / "data.pt").write_bytes(b"prompts")
    write_manifest(place)
    (actor / "optim_world_size_1_rank_0.pt").unlink()
    (actor / "extra_state_world_size_1_rank_0.pt").write_bytes(b"")
    (place / "data.pt").write_bytes(b"")
    assert find_checkpoint(tmp_path).step == 4
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"x")
    said = r"global_step_4 is damaged: actor/model_world_size_1_rank_0\.pt has 1 bytes and had 0 when .*--step\.$"
    for given in (tmp_path, place, actor):
        with pytest.raises(ValueError, match=said):
            find_checkpoint(given)
    mark_unfinished(place)
    with pytest.raises(ValueError, match=r"its files were still being written when the run ended; choose an earlier"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "architecture", "role"])
def test_a_critics_checkpoint_is_refused(tmp_path, kind):
    if kind == "folder":
        place = fsdp(tmp_path / "global_step_1" / "critic")
    elif kind == "architecture":
        place = fsdp(tmp_path / "renamed", architecture="Qwen2ForTokenClassification")
    else:
        place = megatron(tmp_path / "renamed", role="critic")
    with pytest.raises(ValueError, match=r"is a critic's checkpoint, which is no language model; name the actor"):
        find_checkpoint(place)


def test_the_runs_record_is_read_and_a_spoilt_one_is_as_none(tmp_path):
    actor = fsdp(tmp_path / "global_step_1" / "actor")
    assert find_checkpoint(actor).record == {}
    (actor.parent / "f_divergence_run.json").write_text('{"algorithm": "f_grpo"}')
    assert find_checkpoint(actor).record == {"algorithm": "f_grpo"}
    (actor.parent / "f_divergence_run.json").write_text('{"algor')
    assert find_checkpoint(actor).record == {}
