"""Tell a model's files from another's: hashes of their content, remembered between runs."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

from fgrpo_plugin import tables
from fgrpo_plugin.folders import expanded
from fgrpo_plugin.preference.reference_cache import write_whole

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
NOT_THE_MODEL = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
    *("generation_config.json", "*.md", "LICENSE*", ".*"),
    *("optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json", "training_args.bin"),
)
"""Files of a model's folder on which no log-prob of given tokens depends."""
_LONG_HASH = 8 * 2**30  # bytes; a minute or so


def model_fingerprint(
    model: str, setting: str, memory: Path, *, weights: bool = True, say: Callable[[str], None] = lambda line: None
) -> str:
    """Return what identifies a model: the content of its files, configuration and code included.

    Args:
        model: a local folder, or a name on a model hub, which stands for the commit of its local snapshot.
        setting: what the user set, for messages.
        memory: file in which hashes are remembered.
        weights: False: its configuration and code alone.
        say: gets a line before gigabytes are read.

    Raises:
        ValueError: the folder holds no weights, or the name is neither a folder nor in the local hub cache.
    """
    path = expanded(model)
    if not path.is_dir():
        return _hub_commit(model, setting)
    files = [file for file in path.iterdir() if file.is_file() and not _is_any(file, NOT_THE_MODEL)]
    found = weight_files(path)
    if weights and not found:
        raise ValueError(f"{setting}={model}: holds no weight files ({', '.join(WEIGHTS)}).")
    kept = files if weights else [file for file in files if file not in found]
    walked = ((folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    code = [Path(folder, name) for folder, name in walked if name.endswith(".py")]
    own = files_fingerprint({*kept, *code}, path, memory, say)
    return "+".join([own, *(_hub_commit(name, setting) for name in _code_elsewhere(path))])


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's folder that hold its weights; none where it holds a tokenizer alone."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not _is_any(file, NOT_THE_MODEL))
    return [file for file in files if _is_any(file, WEIGHTS)]


def _code_elsewhere(path: Path) -> list[str]:
    """Repositories from which a model's configuration takes code: ``auto_map: {AutoModel: owner/name--file.Class}``."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return []
    mapped = config.get("auto_map") if isinstance(config, dict) else None
    values = [str(value) for value in mapped.values()] if isinstance(mapped, dict) else []
    return sorted({value.split("--")[0] for value in values if "--" in value})


def folder_fingerprint(folder: str, setting: str, memory: Path, say: Callable[[str], None] = lambda line: None) -> str:
    """Return what identifies a folder of which every file counts, such as Megatron's distributed checkpoint.

    Raises:
        ValueError: it is no folder, or an empty one.
    """
    path = expanded(folder)
    files = [file for file in path.glob("**/*") if file.is_file()]
    if not files:
        raise ValueError(f"{setting}={folder}: there is no such folder, or it is empty; name the checkpoint's folder.")
    return files_fingerprint(files, path, memory, say)


def files_fingerprint(files: Iterable[Path], root: Path, memory: Path, say: Callable[[str], None]) -> str:
    """The hash of files' names below `root` and of their content."""
    known = _remembered(memory)
    places = {file: _place(file) for file in sorted(files)}
    size = sum(file.stat().st_size for file, place in places.items() if place not in known)
    if size > _LONG_HASH:
        say(f"reading {size / 2**30:.0f} GiB of {root} once, to know it again")
    found = hashlib.sha256()
    for file, place in places.items():
        if place not in known:
            known[place] = tables.digest(file)
        found.update(json.dumps([file.relative_to(root).as_posix(), known[place]]).encode())
    if known != _remembered(memory):
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(known | _remembered(memory), indent=1).encode())
        except OSError as error:  # another's cache, which may be read alone
            say(f"{memory} cannot be written ({error.strerror}): the files are read again next time")
    return found.hexdigest()


def _place(file: Path) -> str:
    """Return what another content changes of a file: the time of its change of state too, which nobody can set.

    A hash of them: the memory says nothing of where files lie.
    """
    status = file.stat()
    parts = (file.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.sha256("|".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()


def _remembered(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _is_any(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _hub_commit(model: str, setting: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(model, allow_patterns=["config.json"], local_files_only=True)
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{setting}={model}: neither a local folder nor in the local hub cache, so its reference log-probs cannot "
            "be told from another model's; download it, or give its folder."
        ) from error
    return f"{model}@{Path(snapshot).name}"
