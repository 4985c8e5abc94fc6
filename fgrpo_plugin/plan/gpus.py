"""What a plan has to know of a GPU, from a table or a YAML file."""

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

GIB = 2**30


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
        gpu: a name of ``gpus.yaml`` (any case) or the path of a YAML file with the fields of `Gpu`; any other name if
            every field is among ``changes``.
        changes: fields that differ; None is ignored.

    Raises:
        ValueError: unknown, or a field is missing; the message says how to describe it.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    needed = [field.name for field in fields(Gpu)][1:]
    path = Path(gpu).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return Gpu(**{"name": path.stem, **_read(path), **given})
    for name, entry in known_gpus().items():
        if gpu.lower() in (name.lower(), *(other.lower() for other in entry["names"])):
            numbers = {key: value for key, value in entry.items() if key != "names"}
            return replace(Gpu(name=name, **numbers), **given)  # type: ignore[arg-type]
    if set(needed) <= set(given):
        return Gpu(name=gpu, **given)
    raise ValueError(
        f"GPU {gpu} is not known; known: {', '.join(known_gpus())}; describe another by a YAML file (--gpu my.yaml "
        f"with {', '.join(needed)}) or by these as options (--{' --'.join(n.replace('_', '-') for n in needed)})."
    )


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
