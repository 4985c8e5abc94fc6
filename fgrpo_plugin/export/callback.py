"""Export after each save, by verl's own hook.

    trainer.checkpoint_callback_class=fgrpo_plugin.export.callback.ExportAfterSave

verl makes it on the driver and calls it when a checkpoint is written; the run waits meanwhile.
"""

import shlex
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from fgrpo_plugin.export.exporting import export_run
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.typed_settings import typed_settings

SECTION = "trainer.fgrpo_export"


@typed_settings()
class ExportSettings:
    """``++trainer.fgrpo_export.<key>=<value>``; none has to be set."""

    folder: str | None = None
    """Where to: a step is written to <folder>/global_step_N; null takes ``exported`` in trainer.default_local_dir."""
    adapter: bool = False
    """LoRA's adapter as PEFT's folder; by default it is merged."""
    dtype: Literal["bfloat16", "float32", "as-saved"] | None = None
    """Of the weights; null takes bfloat16 for a model, as-saved for an adapter."""


class ExportAfterSave:
    """verl's ``CheckpointCallback``: `fgrpo export` of each checkpoint, on the driver.

    A bad setting ends the run before its first step. A failed export does not end it: the checkpoint is there, and what
    is printed says how to export it.

    Args:
        config: verl's whole configuration.

    Raises:
        ValueError: an unknown or contradictory setting.
    """

    def __init__(self, config: Any = None) -> None:
        section = OmegaConf.select(config, SECTION)
        given: dict[str, Any] = {} if section is None else OmegaConf.to_container(section, resolve=True)  # type: ignore
        try:
            self.settings = ExportSettings(**given)
        except ValueError as error:
            raise ValueError(f"{SECTION}.{error}") from error
        model = "actor_rollout_ref.model"
        ranks = (OmegaConf.select(config, f"{model}.{key}", default=0) for key in ("lora_rank", "lora.rank"))
        if self.settings.adapter and not any(ranks):
            raise ValueError(f"{SECTION}.adapter=true needs LoRA ({model}.lora_rank above 0), or leave it out.")
        if OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.async_save", default=False):
            raise ValueError(
                "trainer.checkpoint_callback_class exports what is written, which a checkpoint saved asynchronously "
                "is not yet; set actor_rollout_ref.actor.checkpoint.async_save=false."
            )
        self.base_model = OmegaConf.select(config, f"{model}.path")
        self.trust = bool(OmegaConf.select(config, f"{model}.trust_remote_code", default=False))

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, **given: Any) -> None:
        """Export what verl has just saved; verl calls it after a save.

        Args:
            trainer: verl's.
            global_step: of the checkpoint.
            checkpoint_dir: its ``global_step_N`` folder.
            given: what verl adds.
        """
        place = Path(checkpoint_dir).absolute()
        folder = place.parent / "exported" if self.settings.folder is None else Path(self.settings.folder)
        output = folder / f"global_step_{global_step}"
        try:
            export_run(
                place,
                output,
                adapter=self.settings.adapter,
                dtype=self.settings.dtype,
                base_model=self.base_model,
                overwrite=True,  # a run that goes on from an earlier step comes by this one again
                trust_remote_code=self.trust,
                say=_say,
            )
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _say(f"WARNING: step {global_step} is not exported: {reason}")
            _say(f"the checkpoint is whole; later: {self._command(place, output)}")

    def _command(self, place: Path, output: Path) -> str:
        """The words that export a checkpoint as it would have been."""
        words = ["fgrpo", "export", str(place), "-o", str(output)]
        words += ["--adapter"] if self.settings.adapter else []
        words += ["--dtype", self.settings.dtype] if self.settings.dtype else []
        words += ["--base-model", str(self.base_model)] if self.base_model else []
        words += ["--overwrite"] if output.exists() else []
        return shlex.join(words + (["--trust-remote-code"] if self.trust else []))


def _say(line: str) -> None:
    say(f"fgrpo-plugin: {line}")
