"""Ends a run in one sentence where what happened is known: a loss or gradient that is not finite, a full disk, too
little memory."""

import contextlib
import errno
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.driver.checkpoints import tracked_step
from fgrpo_plugin.host.driver.liveness import PartDied
from fgrpo_plugin.host.replay_rows import MEGATRONS_CHECK, NonFiniteUpdate, pack

FAILED = "failed"
"""Folder in trainer.default_local_dir for the files of updates that were not finite."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")
_CUT_TEXTS = ("iostream error", "unexpected pos", "file write failed")
"""What torch.save says of a full disk, and of little else."""
_MEMORY_TEXTS = ("out of memory", "can't allocate memory")
_PASSES = {
    "_policy_log_probs": ("rollout", "log_prob"),
    "_compute_old_log_prob": ("rollout", "log_prob"),
    "_compute_ref_log_prob": ("ref", "log_prob"),
    "_update_actor": ("actor", "ppo"),
}
"""The driver's method -> section and prefix of the settings that size its micro-batches."""


class RunEnded(RuntimeError):
    """The run has met what it cannot go on from; the message says what, and what to do."""


class RunEndings:
    """Mixed in front of a verl trainer: `fit` ends with a sentence where the error is a known one."""

    config: Any
    global_steps: int

    def fit(self, agent_loop_manager: Any) -> None:
        try:
            super().fit(agent_loop_manager)  # type: ignore[misc]
        except Exception as error:
            sentence = explained(error, self.config, self.global_steps)
            if sentence is None:
                raise
            say(f"fgrpo-plugin: {sentence}", error=True)
            raise RunEnded(sentence) from error


def explained(error: BaseException, config: Any, step: int) -> str | None:
    """Return why the run ends in a sentence with the remedy, or None where that is not known; writes the file.

    Args:
        error: as the driver has caught it.
        config: verl's.
        step: in which it happened.
    """
    chain = list(_causes(error))[::-1]  # Ray's own errors are of the causes' classes too, and their text is a traceback
    for cause in chain:
        if isinstance(cause, PartDied):  # which the watch says
            return None
        if isinstance(cause, NonFiniteUpdate):
            return _not_finite(cause, config, step)
    if any(MEGATRONS_CHECK in str(cause) for cause in chain):  # of a pipeline stage, which sees no rows
        return (
            f"step {step}: the gradient of a mini-batch is not finite ({_line(chain[0])}). Nothing of it is applied "
            f"or saved. {_resume(config)}"
        )
    frames = [frame.name for cause in reversed(chain) for frame in traceback.extract_tb(cause.__traceback__)]
    full = next((cause for cause in chain if _is_full(cause)), None)
    if "_save_checkpoint" in frames:
        return _not_saved(full, chain, config, step)
    if full is not None:
        return f"step {step}: no space is left on a disk ({_line(full)}); free some, and start the same command again."
    if short := next((cause for cause in chain if _is_memory(cause)), None):
        return _too_little_memory(short, frames, config, step)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what was behind it in a worker or here: what happened first comes last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        behind = getattr(error, "cause", None)  # Ray's, of an error in a worker
        error = behind if isinstance(behind, BaseException) else error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _FULL_TEXTS)


def _is_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS))


def _not_finite(error: NonFiniteUpdate, config: Any, step: int) -> str:
    folder = Path(config.trainer.default_local_dir) / FAILED
    file = folder / f"step_{step}_rank_{error.about['rank']}.safetensors"
    said = f"step {step}: {error} Nothing of it is applied or saved"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, pack(error.rows, {**error.about, "step": step}))
    except OSError as problem:
        return f"{said}, and its rows could not be written to {file} ({_line(problem)})."
    return f"{said}; `fgrpo replay {file}` computes it again and names the rows. {_resume(config)}"


def _not_saved(full: BaseException | None, chain: list[BaseException], config: Any, step: int) -> str:
    folder = Path(config.trainer.default_local_dir)
    free = ""
    with contextlib.suppress(OSError):
        free = f", {shutil.disk_usage(folder).free / 2**30:.2f} GiB are free there now"
    cut = next((cause for cause in chain if any(text in str(cause) for text in _CUT_TEXTS)), None)
    reason = "no space is left on the disk" if full else "a file could not be written whole, as on a full disk or quota"
    remedy = "free space"
    closed = next((cause for cause in chain if getattr(cause, "errno", None) in _CLOSED), None)
    if not (full or cut):
        reason, remedy = "an error", "see to it"
        if closed:
            reason, free, remedy = "it cannot be written to", "", "make it writable"
    begun = (folder / f"global_step_{step}").exists()
    before = f"global_step_{step} in it is half-written, and what" if begun else "What"
    return (
        f"the checkpoint of step {step} could not be saved to {folder}: {reason} "
        f"({_line(full or cut or closed or chain[0])}){free}. "
        f"{before} was saved before is as it was; {remedy}, or name another trainer.default_local_dir. "
        f"{_resume(config)}"
    )


def _too_little_memory(error: BaseException, frames: list[str], config: Any, step: int) -> str:
    from omegaconf import OmegaConf

    select: Callable[[str], Any] = lambda key: OmegaConf.select(config, key)  # noqa: E731
    known = [frame for frame in frames if frame in _PASSES]
    if not known:
        remedy = "`fgrpo plan` with the same overrides says what takes it"
    else:
        part, prefix = _PASSES[known[-1]]
        section = f"actor_rollout_ref.{part}"
        dynamic = select(f"{section}.{'' if prefix == 'ppo' else 'log_prob_'}use_dynamic_bsz")
        size = f"{section}.{prefix}_{'max_token_len' if dynamic else 'micro_batch_size'}_per_gpu"
        remedy = f"lower {size} (now {select(size)}), or see what `fgrpo plan` says with the same overrides"
    place = f" in {known[-1]}" if known else ""
    return (
        f"step {step}: out of memory{place} ({_line(error)}); nothing of this step is saved; {remedy}. "
        f"{_resume(config)}"
    )


def _resume(config: Any) -> str:
    trainer = config.trainer
    step = tracked_step(Path(trainer.default_local_dir))
    auto = "" if step is None else f"; with trainer.resume_mode=auto it goes on from global_step_{step}"
    if trainer.resume_mode == "resume_path":
        return f"The same command then goes on from {trainer.resume_from_path} once more{auto}."
    if trainer.resume_mode == "disable":
        return f"The same command then begins anew, as trainer.resume_mode=disable says{auto}."
    if step is None:
        return "There is no earlier checkpoint, so that the run then begins anew."
    return f"The same command then goes on from global_step_{step}."


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]:.200}" if lines else type(error).__name__
