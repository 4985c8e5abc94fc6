"""verl's own hook exports after each save: built by verl from the override, called by verl's own save."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from fgrpo_plugin.export.callback import ExportAfterSave

CALLBACK = "trainer.checkpoint_callback_class=fgrpo_plugin.export.callback.ExportAfterSave"
LORA = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8"]


@pytest.fixture
def save(runs, stock_config, tmp_path):
    """verl's ``_save_checkpoint`` with a worker group that puts down what verl's workers had saved."""
    from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    def run(source: str, *overrides: str, step: int = 3) -> Path:
        folder = tmp_path / "run"
        model = f"actor_rollout_ref.model.path={runs.model}"
        config = stock_config(CALLBACK, model, f"trainer.default_local_dir={folder}", *overrides)
        actor = runs.folder / source / "global_step_7" / "actor"

        def save_checkpoint(place: str, *given: object, **more: object) -> None:
            shutil.copytree(actor, place, dirs_exist_ok=True)

        trainer = SimpleNamespace(
            config=config,
            global_steps=step,
            trainer_mode="sync",
            use_critic=False,
            actor_rollout_wg=SimpleNamespace(save_checkpoint=save_checkpoint),
            train_dataloader=SimpleNamespace(state_dict=dict),
            checkpoint_callback=build_checkpoint_callback(config),
        )
        PPOTrainer._save_checkpoint(trainer)
        assert (folder / f"global_step_{step}" / "data.pt").is_file()
        return folder

    return run


def test_each_saved_step_is_exported(save, capsys):
    run = save("full")
    save("full", step=6)
    save("full", step=6)  # once more, by a run that goes on from an earlier step
    assert sorted(path.name for path in (run / "exported").iterdir()) == ["global_step_3", "global_step_6"]
    assert AutoModelForCausalLM.from_pretrained(run / "exported" / "global_step_6")
    said = capsys.readouterr().out
    assert f"fgrpo-plugin: written: {run / 'exported' / 'global_step_3'}" in said and "WARNING" not in said


def test_settings_are_taken_from_the_trainers_section(save, tmp_path):
    section = "++trainer.fgrpo_export"
    save("lora_only", *LORA, f"{section}.folder={tmp_path / 'here'}", f"{section}.dtype=float32")
    assert (tmp_path / "here" / "global_step_3" / "model.safetensors").is_file()  # merged into the run's own model
    save("lora", *LORA, f"{section}.adapter=true", step=4)
    assert (tmp_path / "run" / "exported" / "global_step_4" / "adapter_model.safetensors").is_file()


def test_a_failed_export_does_not_end_the_run_and_says_how_to_make_up_for_it(runs, save, tmp_path, capsys):
    occupied = tmp_path / "run" / "exported" / "global_step_3"
    occupied.mkdir(parents=True)
    (occupied / "notes.txt").touch()
    run = save("full")
    said = capsys.readouterr().out
    assert "WARNING: step 3 is not exported: --output=" in said and "is no model's folder" in said
    words = f"fgrpo export {run / 'global_step_3'} -o {occupied} --base-model {runs.model} --overwrite\n"
    assert f"later: {words}" in said
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_the_command_that_makes_up_for_it_has_the_settings(stock_config, tmp_path):
    section = "++trainer.fgrpo_export"
    given = [*LORA, f"{section}.adapter=true", f"{section}.dtype=float32", "actor_rollout_ref.model.path=a/model"]
    callback = ExportAfterSave(stock_config(*given, "actor_rollout_ref.model.trust_remote_code=true"))
    assert callback._command(Path("my run"), tmp_path / "new") == (
        f"fgrpo export 'my run' -o {tmp_path / 'new'} --adapter --dtype float32 --base-model a/model "
        "--trust-remote-code"
    )


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["++trainer.fgrpo_export.form=gguf"], r"trainer.fgrpo_export.form is not known; choose among folder, adapter"),
        (["++trainer.fgrpo_export.dtype=int8"], r"trainer.fgrpo_export.dtype='int8' must be one of bfloat16, float32"),
        (["++trainer.fgrpo_export.adapter=true"], r"adapter=true needs LoRA \(actor_rollout_ref.model.lora_rank above"),
        (
            ["actor_rollout_ref.actor.checkpoint.async_save=true"],
            r"saved asynchronously is not yet; set .*checkpoint.async_save=false\.$",
        ),
    ],
)
def test_a_bad_setting_ends_the_run_before_its_first_step(save, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        save("full", *overrides)
