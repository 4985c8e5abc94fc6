"""Reference log-probs of preference rows on disk: they never change, so they are computed once.

A folder holds the log-probs of one reference under one way of computing them (its `key`), in files that are written
whole and never changed. A file's name holds the hash of its content, so that damage is seen, and the file holds its
folder's name, so that one of another reference is.
"""

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from fgrpo_plugin.folders import expanded, write_whole
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.preference.tokens import TokenRow

DEFAULT_FOLDER = "~/.cache/fgrpo/reference"
_NOT_KEPT = (
    "reference log-probs of further preference rows are kept for this run alone, and the next one computes them again; "
    "data.preference.cache_dir names the folder"
)


class ReferenceCache:
    """Log-probs of responses under one reference.

    Args:
        folder: where caches of all keys lie; made where it is missing.
        key: everything that the log-probs depend on beside the row's tokens, as JSON holds it; see
            host/driver/reference_identity.py.

    Attributes:
        damaged: files that were found damaged, or of another reference, and removed; their rows are computed anew.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]):
        text = _text(key)
        self.folder = expanded(folder) / _name(text)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not _is_text(self.folder / "key.json", text):  # another's cache may be there to be read alone
            write_whole(self.folder / "key.json", text.encode())
        self.damaged: list[Path] = []
        self._said = False
        self._rows: dict[bytes, torch.Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            self._read(file)
        self._loaded = frozenset(self._rows)

    def was_loaded(self, row: TokenRow) -> bool:
        """Return whether an earlier run has computed it."""
        return row.digest in self._loaded

    def get(self, row: TokenRow) -> torch.Tensor | None:
        """log pi_ref of the response tokens, (T,) float32 nats, or None where they are not known."""
        found = self._rows.get(row.digest)
        return found if found is not None and len(found) == row.response_length else None

    def add(self, rows: Sequence[TokenRow], log_probs: Sequence[torch.Tensor]) -> None:
        """Keep the log-probs of rows, (T,) each, in memory and on disk.

        Raises:
            ValueError: a log-prob that is not finite, or not one for each response token.
        """
        new: dict[bytes, torch.Tensor] = {}
        for row, values in zip(rows, log_probs, strict=True):
            # A copy: what a stage returns is a view of a whole padded pass, which it would keep alive.
            values = values.detach().to("cpu", torch.float32, copy=True)
            if len(values) != row.response_length or not bool(torch.isfinite(values).all()):
                raise ValueError(f"{row.source}: the reference gave {values.tolist()!r:.80} as its log-probs.")
            if row.digest not in self._rows:
                new[row.digest] = values
        if not new:
            return
        content = save(
            {
                "digest": torch.frombuffer(bytearray(b"".join(new)), dtype=torch.uint8).view(len(new), -1),
                "length": torch.tensor([len(values) for values in new.values()]),
                "log_prob": torch.cat(list(new.values())),
            },
            {"key": self.folder.name},
        )
        with self._kept_in_memory_alone():
            write_whole(self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
        self._rows.update(new)

    @contextlib.contextmanager
    def _kept_in_memory_alone(self) -> Iterator[None]:
        """Go on where the folder may be read alone, and say so once."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if not self._said:
                say(f"fgrpo-plugin: WARNING: {self.folder} cannot be written to ({error.strerror}): {_NOT_KEPT}.")
            self._said = True

    def _read(self, file: Path) -> None:
        try:
            content = file.read_bytes()
        except FileNotFoundError:  # another run has found it damaged
            return
        except OSError:  # of a disk that fails
            content = b""
        if hashlib.sha256(content).hexdigest() != file.stem or _key_in(content) not in (None, self.folder.name):
            self.damaged.append(file)
            with contextlib.suppress(OSError):  # it is there to be read alone
                file.unlink()
            return
        found = load(content)
        digests = [bytes(digest.tolist()) for digest in found["digest"]]
        self._rows.update(zip(digests, found["log_prob"].split(found["length"].tolist()), strict=True))


def keys_in(folder: str | Path) -> list[dict[str, Any]]:
    """The keys of all caches in a folder, by which `ReferenceCache` opens them; one that is damaged is passed over."""
    found = []
    for file in sorted(expanded(folder).glob("*/key.json")):
        try:
            key = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(key, dict) and _name(_text(key)) == file.parent.name:
            found.append(key)
    return found


def _key_in(content: bytes) -> str | None:
    """The folder that a file was written for; None of one by an earlier version, which did not say."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # safetensors: its length, then JSON
    return header.get("__metadata__", {}).get("key")


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, indent=1)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _is_text(file: Path, text: str) -> bool:
    try:
        return file.read_bytes() == text.encode()
    except OSError:
        return False
