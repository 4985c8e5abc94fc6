"""What a plan has to know of a GPU, from a table or a YAML file."""

import re
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fgrpo_plugin.folders import expanded

GIB = 2**30
MAKERS = ("nvidia", "geforce", "tesla", "amd", "instinct")
"""Words that nvidia-smi and torch put before a name, and people leave out."""


@dataclass(frozen=True)
class Gpu:
    """One device. Units are those in which data sheets are written; the properties give bytes and FLOP/s."""

    name: str
    memory_gib: float
    tflops: float
    """Peak of dense matrix products in the training's number format, 1e12 FLOP/s."""
    bandwidth_gb: float
    """Of its own memory, 1e9 bytes/s."""
    link_gb: float
    """To the other GPUs of its node, one direction, 1e9 bytes/s."""
    network_gb: float
    """Its share of the network between nodes, one direction, 1e9 bytes/s."""
    host_gb: float
    """To host memory, one direction, 1e9 bytes/s."""

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"GPU {self.name}: {field.name}={value!r} must be a number > 0.")

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * GIB

    @property
    def flops(self) -> float:
        """FLOP/s."""
        return self.tflops * 1e12

    def described(self) -> dict[str, Any]:
        """The content of a YAML file that describes it."""
        return asdict(self)


@cache
def known_gpus() -> dict[str, dict[str, Any]]:
    """The table ``gpus.yaml``."""
    from omegaconf import OmegaConf

    table = OmegaConf.create(files("fgrpo_plugin.plan").joinpath("gpus.yaml").read_text())
    return OmegaConf.to_container(table)  # type: ignore[return-value]


def find_gpu(gpu: str, **changes: float | None) -> Gpu:
    """A known GPU, or one described by a YAML file.

    Args:
        gpu: a name of ``gpus.yaml`` as people, nvidia-smi or torch write it, or the path of a YAML file with the fields
            of `Gpu`; any other name if every field is among ``changes``.
        changes: fields that differ; None is ignored.

    Raises:
        ValueError: unknown, or a field is missing; the message says how to describe it.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    needed = [field.name for field in fields(Gpu)][1:]
    path = expanded(gpu)
    if path.suffix in (".yaml", ".yml"):
        return Gpu(**{"name": path.stem, **_read(path), **given})
    spellings = {plain_name(known): name for name, entry in known_gpus().items() for known in (name, *entry["names"])}
    if found := spellings.get(plain_name(gpu)):
        return replace(Gpu(name=found, **{field: known_gpus()[found][field] for field in needed}), **given)  # type: ignore[arg-type]
    if set(needed) <= set(given):
        return Gpu(name=gpu, **given)
    near = dict.fromkeys(spellings[close] for close in get_close_matches(plain_name(gpu), spellings, n=5))
    meant = f"nearest: {', '.join(near)}; " if near else ""
    raise ValueError(
        f"GPU {gpu} is not known; {meant}known: {', '.join(known_gpus())}; describe another by a YAML file (--gpu "
        f"my.yaml with {', '.join(needed)}) or by --assume {needed[0]}=... for each of these."
    )


def plain_name(gpu: str) -> str:
    """A name without maker, case, spaces and hyphens."""
    words = re.split(r"[^a-z0-9]+", gpu.lower())
    return "".join(word for word in words if word not in MAKERS)


def _read(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if not path.is_file():
        raise ValueError(f"--gpu {path}: there is no such file.")
    needed = {field.name for field in fields(Gpu)}
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # whatever the YAML reader raises
        raise ValueError(f"--gpu {path}: cannot be read ({str(error).splitlines()[0]}).") from None
    found = found if isinstance(found, dict) else {}
    if missing := sorted(needed - {"name"} - set(found)):
        raise ValueError(f"--gpu {path}: {', '.join(missing)} is missing; add it.")
    if unknown := sorted(set(map(str, found)) - needed):
        raise ValueError(f"--gpu {path}: {', '.join(unknown)} is not known; fields are {', '.join(sorted(needed))}.")
    return found  # type: ignore[return-value]
