"""What a checkpoint keeps of its run's settings: enough to say later how a model was made, and nothing private."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from omegaconf import OmegaConf

import fgrpo_plugin
from fgrpo_plugin.folders import expanded
from fgrpo_plugin.foreign_text import say, without_secrets
from fgrpo_plugin.host.contract import LOSS
from fgrpo_plugin.host.settings.reading import is_f_divergence, read_settings
from fgrpo_plugin.manifest import known_by

RECORD_FILE = "f_divergence_run.json"
"""In a checkpoint's ``global_step_N`` folder."""
_ACTOR = (
    *(
        "strategy",
        "ppo_mini_batch_size",
        "ppo_epochs",
        "optim.clip_grad",
        "entropy_coeff",
        "use_kl_loss",
        "kl_loss_coef",
    ),
    *("optim.lr", "optim.lr_warmup_steps", "optim.lr_warmup_steps_ratio", "optim.weight_decay", "optim.optimizer"),
)
_DATA = ("train_batch_size", "max_prompt_length", "max_response_length", "seed")
_ROLLOUT = ("n", "temperature", "top_p", "top_k")
_ADAPTER = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save")
_NO_SETTINGS = ("versions", "step", "lam", "model_is_local")
"""Of a record, what is of the moment or of the machine."""
_HOMES = ("home", "Users", "users")


def run_record(config: Any, step: int, total_steps: int) -> dict[str, Any]:
    """Settings of a run, from verl's whole configuration.

    Values are named one by one, so that no credential or address of a logger is among them, and of a local path the
    last two names are kept, without a user's.

    Args:
        config: verl's, validated.
        step: training step of the checkpoint, from 1.
        total_steps: of the whole run.

    Returns:
        What ``json`` can write: versions, step, model, algorithm, ``f_divergence`` as it came out of preset and
        defaults, lambda of this step, actor, data, rollout, preferences, LoRA. What is not set is left out.
    """
    model, train = "actor_rollout_ref.model", _listed(OmegaConf.select(config, "data.train_files"))
    path = OmegaConf.select(config, f"{model}.path")
    found: dict[str, Any] = {
        "versions": {name: _version(name) for name in ("verl", "torch", "transformers")}
        | {"fgrpo_plugin": fgrpo_plugin.__version__},
        "step": step,
        "total_steps": total_steps,
        "model": public_name(path),
        "model_is_local": path is not None and Path(os.path.expanduser(path)).exists() and "models--" not in str(path),
        "algorithm": OmegaConf.select(config, "algorithm.adv_estimator"),
        "actor": _chosen(config, "actor_rollout_ref.actor", _ACTOR),
        "data": _chosen(config, "data", _DATA)
        | {"train_files": [public_name(file) for file in train], "train_content": [_content(file) for file in train]},
        "rollout": _chosen(config, "actor_rollout_ref.rollout", _ROLLOUT),
    }
    if is_f_divergence(config):
        settings = read_settings(OmegaConf.select(config, f"{LOSS}.f_divergence"))
        found["f_divergence"] = asdict(settings)
        if settings.lam != 0:
            found["lam"] = settings.lam_at(step, total_steps)
    if (preferences := OmegaConf.select(config, "data.preference")) is not None:
        files = _listed(preferences.get("files"))
        found["preference"] = {"files": [public_name(file) for file in files]}
    if lora := _lora(config, model):
        found["lora"] = lora
    return found


def changed_settings(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare the settings of a resumed run with its checkpoint's.

    Args:
        folder: the checkpoint's ``global_step_N``.
        now: `run_record` of the run.

    Returns:
        "name: then -> now" of each that differs, as JSON; none where the checkpoint has no record that can be read.
        What an older record does not have is not compared.
    """
    try:
        then = _flat(json.loads((folder / RECORD_FILE).read_text()))
    except (OSError, ValueError, RecursionError):
        return []
    mine = _flat(json.loads(json.dumps(now)))
    names = [name for name in then if name and name.split(".")[0] not in _NO_SETTINGS]
    return [
        f"{name}: {_shown(then[name])} -> {_shown(mine.get(name))}" for name in names if then[name] != mine.get(name)
    ]


def report_changes(folder: Path, now: Mapping[str, Any]) -> None:
    """Print what `changed_settings` finds; what a restored optimiser brings back from its checkpoint stands apart."""
    changed = changed_settings(folder, now)
    kept = [line for line in changed if line.startswith("actor.optim.")]
    if others := [line for line in changed if line not in kept]:
        say(f"fgrpo-plugin: the checkpoint had other settings; from here on: {'; '.join(others)}")
    if kept:
        say(
            "fgrpo-plugin: the checkpoint's optimiser had other settings, which FSDP restores with it, so that the new "
            f"ones have no effect there: {'; '.join(kept)}"
        )


def _flat(record: Any, name: str = "") -> dict[str, Any]:
    """Nested names with dots between them."""
    if not isinstance(record, dict):
        return {name: record}
    parts = [_flat(value, f"{name}.{key}" if name else key) for key, value in record.items()]
    return {key: value for part in parts for key, value in part.items()}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lora(config: Any, model: str) -> dict[str, Any]:
    """Rank, alpha and what else scales an adapter; of one that was given, from its own file."""
    if OmegaConf.select(config, f"{model}.lora_rank", default=0):
        found = _chosen(config, model, ("lora_rank", "lora_alpha", "target_modules"))
    elif OmegaConf.select(config, f"{model}.lora.rank", default=0):
        found = _chosen(config, f"{model}.lora", ("rank", "alpha", "target_modules"))
    else:
        return {}
    given = OmegaConf.select(config, f"{model}.lora_adapter_path")
    if given:
        found["adapter"] = public_name(given)
        try:
            own = json.loads((Path(given) / "adapter_config.json").read_text())
        except (OSError, ValueError):
            return found
        found["adapter_config"] = {name: own[name] for name in _ADAPTER if own.get(name) is not None}
    return found


def public_name(path: str | None) -> str | None:
    """A file or model under a name that others may read.

    A name of a model hub is kept, a snapshot in a hub's cache gets its name back, an address loses its query and its
    user, and of a local path the last two names remain, or the last where the other may be a user's.
    """
    if path is None:
        return None
    if "://" in (text := str(path)):
        scheme, _, rest = re.split(r"[?#]", text)[0].partition("://")
        return without_secrets(f"{scheme}://{rest.rpartition('@')[2]}")
    given = PurePath(text)
    for part in given.parts:
        if part.startswith(("models--", "datasets--")):
            return part.split("--", 1)[1].replace("--", "/")
    if not Path(text).exists() and not text.startswith(("/", ".", "~")):
        return text
    place = PurePath(Path(os.path.expanduser(text)).absolute())
    parts = place.parts
    home = PurePath(os.path.expanduser("~"))  # "~" itself of a user without HOME and without a name
    first = len(home.parts) if place.is_relative_to(home) else 0
    for index, part in enumerate(parts[:-1]):
        if part in _HOMES:
            first = max(first, index + 2)
    kept = parts[max(first, 1) :]
    return "/".join(kept[-2:] or parts[-1:])


def _chosen(config: Any, section: str, names: Iterable[str]) -> dict[str, Any]:
    found = {name: OmegaConf.select(config, f"{section}.{name}") for name in names}
    plain = {name: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for name, v in found.items()}
    return {name: value for name, value in plain.items() if value is not None}


@functools.cache  # a file that changes while the run trains is to it what it was at the start
def _content(file: str) -> str | None:
    """By what a local file's content is known again: its size and the beginning of a hash."""
    with contextlib.suppress(OSError, ValueError):
        size, digest = known_by(expanded(file))
        return f"{size} bytes, {digest[:12]}"
    return None


def _listed(value: Any) -> list[str]:
    """Of what need not have been checked: another algorithm's run may name anything."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return [] if value is None else [str(one) for one in value] if several else [str(value)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
