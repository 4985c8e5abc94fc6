"""Which checkpoint a run goes on from, and what a checkpoint holds beside verl's files.

verl writes a checkpoint file by file, in place, and its tracker file last. Beside them lies a list of all files with
their sizes and hashes (`fgrpo_plugin.manifest`), written when verl's save is complete. It is asked before verl loads:
a checkpoint with a damaged file is named and not loaded.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict

from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.driver.preference_source import STATE_FILE
from fgrpo_plugin.host.driver.run_folder import hold
from fgrpo_plugin.host.settings.record import RECORD_FILE, report_changes, run_record
from fgrpo_plugin.manifest import MANIFEST, damage, mark_unfinished, read_manifest, write_manifest

TRACKER = "latest_checkpointed_iteration.txt"
"""verl's file beside the checkpoints: the step of the newest one that it finished."""
STEP = re.compile(r"global_step_(\d+)")


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """Step -> folder of each checkpoint in a run's folder, whether whole or not."""
    names = [(STEP.fullmatch(path.name), path) for path in (run.iterdir() if run.is_dir() else ()) if path.is_dir()]
    return {int(match[1]): path for match, path in names if match}


def tracked_step(run: Path) -> int | None:
    """The step in verl's tracker file, or None where there is none that can be read."""
    try:
        return int((run / TRACKER).read_text())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that a run goes on from."""

    folder: Path
    step: int
    stands_in: bool = False
    """Whether verl by itself would load another one, or none."""
    earlier: tuple[int, ...] = ()
    """Steps of the checkpoints that this one came by, from the first."""


def choose(trainer: Any) -> Chosen | None:
    """Find the checkpoint that a run goes on from, by verl's settings and by the lists of files; say what is damaged.

    Args:
        trainer: verl's section ``trainer``.

    Returns:
        None where the run begins anew, or where what is asked for is verl's to refuse.

    Raises:
        ValueError: the one that was asked for is damaged, or none of a run's is whole; names the file and the remedy.
    """
    if trainer.resume_mode == "resume_path":
        return _asked_for(trainer.resume_from_path)
    return _newest_whole(Path(trainer.default_local_dir)) if trainer.resume_mode == "auto" else None


def _asked_for(given: Any) -> Chosen | None:
    found = re.search(rf"{STEP.pattern}(/*)$", given) if isinstance(given, str) else None
    if found is None:  # verl's to refuse
        return None
    folder, step = Path(given), int(found[1])
    if not folder.is_dir():
        raise ValueError(f"trainer.resume_from_path={given}: there is no such folder; name a run's global_step_N.")
    if (problem := _problem(folder, step)) is not None:
        earlier = sorted((one for one in checkpoint_folders(folder.parent) if one < step), reverse=True)
        others = f" ({', '.join(f'global_step_{one}' for one in earlier[:3])})" if earlier else ""
        raise ValueError(
            f"trainer.resume_from_path={given} is damaged: {problem}; name an earlier checkpoint{others}"
            f"{_ALL_THE_SAME}."
        )
    return Chosen(folder, step, stands_in=bool(found[2]), earlier=_earlier(folder))  # verl takes no slash at the end


def _newest_whole(run: Path) -> Chosen | None:
    folders, tracked, noted = checkpoint_folders(run), tracked_step(run), (run / TRACKER).exists()
    steps = sorted(folders, reverse=True)
    if tracked is None:
        steps = [step for step in steps if _is_listed(folders[step])]  # others are not known to have been finished
        if noted or steps:
            _say(f"{run / TRACKER}, verl's note of its newest checkpoint, is {'damaged' if noted else 'missing'}.")
    else:
        if tracked not in folders:
            _say(f"{run / f'global_step_{tracked}'}, verl's newest checkpoint, is missing.")
        steps = _on_the_way_to(tracked, folders)
    for step in steps:
        if (problem := _problem(folders[step], step)) is None:
            return Chosen(folders[step], step, step != tracked, _earlier(folders[step]))
        _say(f"{folders[step]} is not loaded: {problem}.")
    if not noted or not folders:
        return None  # nothing was ever finished, or all was removed
    raise ValueError(
        f"trainer.default_local_dir={run}: none of its checkpoints can be loaded, as is said above; name another one "
        f"in trainer.resume_from_path with trainer.resume_mode=resume_path{_ALL_THE_SAME}, or begin anew with "
        "trainer.resume_mode=disable."
    )


def _on_the_way_to(newest: int, folders: Mapping[int, Path]) -> list[int]:
    """Return that step and those before it, newest first: later ones, and those that its run did not come by, were left
    by a run that took another way from an earlier checkpoint."""
    steps = [step for step in sorted(folders, reverse=True) if step <= newest]
    with contextlib.suppress(ValueError):
        kept = read_manifest(folders[newest]) if newest in folders else None
        if kept and kept.get("step") == newest:
            return [step for step in steps if step == newest or step in kept["earlier"]]
    return steps


_ALL_THE_SAME = f" (to load it all the same, remove its {MANIFEST})"


def _problem(folder: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of a step, in words."""
    if not (folder / "actor").is_dir():  # verl removes that alone, beyond trainer.max_actor_ckpt_to_keep
        return "it holds no actor folder"
    if (problem := damage(folder)) is not None:
        return problem
    listed = (read_manifest(folder) or {}).get("step", step)
    return None if listed == step else f"its {MANIFEST} is of step {listed}"


def _is_listed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _earlier(folder: Path) -> tuple[int, ...]:
    return tuple((read_manifest(folder) or {}).get("earlier", ()))


def _say(line: str) -> None:
    say(f"fgrpo-plugin: {line}")


class Checkpoints:
    """Mixed in front of a verl trainer: our state and the list of files beside verl's checkpoints."""

    config: Any
    global_steps: int
    total_training_steps: int
    preferences: Any = None
    checkpoint_callback: Any
    _saved: tuple[int, ...] = ()
    """Steps of the checkpoints that this run came by or has saved."""
    _held: int | None = None
    """The lock of the run's folder, for as long as the process lives."""

    def _load_checkpoint(self) -> None:
        if self._held is None and (OmegaConf.select(self.config, "trainer.save_freq") or 0) > 0:
            self._held = hold(Path(self.config.trainer.default_local_dir))
        chosen = choose(self.config.trainer)
        run_record(self.config, 0, self.total_training_steps)  # now: it remembers what the files of prompts hold
        if chosen is not None:
            listed = "" if _is_listed(chosen.folder) else f"; it has no {MANIFEST}, so its files are taken as they are"
            _say(f"continues from {chosen.folder} (step {chosen.step}){listed}")
        with self._loading(chosen):
            super()._load_checkpoint()  # type: ignore[misc]
        if chosen is None:
            return
        self._saved = (*chosen.earlier, chosen.step)
        if chosen.step >= self.total_training_steps:
            _say(
                f"WARNING: {chosen.folder} is of step {chosen.step} and trainer.total_training_steps is "
                f"{self.total_training_steps}, so that nothing is trained; raise it to go on."
            )
        report_changes(chosen.folder, run_record(self.config, self.global_steps, self.total_training_steps))
        if self.preferences is not None:
            self.preferences.load(chosen.folder)

    @contextlib.contextmanager
    def _loading(self, chosen: Chosen | None) -> Iterator[None]:
        """Where verl would take another checkpoint, name ours to it for as long as it loads."""
        if chosen is None or not chosen.stands_in:
            yield
            return
        trainer = self.config.trainer
        before = {name: OmegaConf.select(trainer, name) for name in ("resume_mode", "resume_from_path")}
        with open_dict(trainer):
            trainer.resume_mode, trainer.resume_from_path = "resume_path", str(chosen.folder.absolute())
        try:
            yield
        finally:
            with open_dict(trainer):
                trainer.update(before)

    def _save_checkpoint(self) -> None:
        folder = self._checkpoint_folder()
        folder.mkdir(parents=True, exist_ok=True)
        unlisted = bool(OmegaConf.select(self.config, "actor_rollout_ref.actor.checkpoint.async_save"))
        if unlisted:  # verl's workers go on writing when its save is over
            (folder / MANIFEST).unlink(missing_ok=True)
        else:
            mark_unfinished(folder)
        # Before verl's own: its tracker file, written last, then never names a checkpoint without this state.
        if self.preferences is not None:
            self.preferences.save(folder)
        else:  # of a run before in this folder: another f-HAL run would go on from rows that this one has not drawn
            (folder / STATE_FILE).unlink(missing_ok=True)
        record = run_record(self.config, self.global_steps, self.total_training_steps)
        write_whole(folder / RECORD_FILE, (json.dumps(record, indent=1) + "\n").encode())
        with self._listing(folder, unlisted):
            super()._save_checkpoint()  # type: ignore[misc]
        self._saved = (*(step for step in self._saved if step < self.global_steps), self.global_steps)

    @contextlib.contextmanager
    def _listing(self, folder: Path, unlisted: bool) -> Iterator[None]:
        """List the files once verl has written them: before the callback of its save, which may take minutes."""
        callback = getattr(self, "checkpoint_callback", None)
        listed = False

        def list_files() -> None:
            nonlocal listed
            if not listed and not unlisted:
                earlier = [step for step in self._saved if step < self.global_steps]
                write_manifest(folder, kept={"step": self.global_steps, "earlier": earlier})
            listed = True

        self.checkpoint_callback = _Before(callback, list_files)
        try:
            yield
            list_files()
        finally:
            self.checkpoint_callback = callback

    def _checkpoint_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"


class _Before:
    """verl's checkpoint callback, with something done before it is told of a save."""

    def __init__(self, callback: Any, first: Any):
        self._callback, self._first = callback, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def on_save(self, *args: Any, **given: Any) -> None:
        self._first()
        self._callback.on_save(*args, **given)
