"""A wheel and a source distribution that install by themselves, and the files that a release consists of."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from fgrpo_plugin import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fgrpo_plugin"
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def build(tree: Path, kind: str, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Of a copy of what git holds, so that nothing that lies about comes along."""
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    return build(tree, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the source distribution, as whoever has no wheel does."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (tree,) = unpacked.iterdir()
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
        (about,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(about).decode()
    listed = subprocess.run(["git", "ls-files", "fgrpo_plugin"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert found == {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert f"Version: {__version__}\n" in metadata and "License-Expression: Apache-2.0\n" in metadata
    assert "Project-URL: Paper, https://arxiv.org/abs/2602.05946\n" in metadata


def test_installed_from_the_wheel_the_commands_run_and_verl_finds_the_plugin(wheel, tmp_path):
    """In a new environment, which sees the dependencies of this one and not this tree."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    # Without the finder of the editable installation, which a .pth of this environment would start.
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = place / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    where = subprocess.run(
        [python, "-c", "import fgrpo_plugin; print(fgrpo_plugin.__file__)"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(own)
    done = subprocess.run(
        [python, "-m", "fgrpo_plugin.cli", "doctor", "--no-ray"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "ready", done.stdout + done.stderr


def test_the_changelog_and_the_citation_are_of_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.*?)\]", changes, flags=re.MULTILINE)[0] in ("Unreleased", __version__)
    assert set(re.findall(r"^### (.*)$", changes, flags=re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert str(citation["version"]) == __version__ and citation["license"] == project["license"]
    paper = citation["references"][0]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text().replace("{", "").replace("}", "").split())


def test_every_declared_distribution_stands_among_the_licences():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs" / "make" / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = {line.split(" | ")[0]: line for line in module.PAGE.read_text().splitlines() if line.startswith("| ")}
    made = {line.split(" | ")[0]: line for line in module.page().splitlines() if line.startswith("| ")}
    assert shown.keys() == made.keys() and len(made) > 40
    assert {name: line.split(" | ")[1] for name, line in shown.items()} == {
        name: line.split(" | ")[1] for name, line in made.items()
    }
    assert (
        "| numpy | always | BSD License |" in shown.values() and "| wrapt | always | BSD-2-Clause |" in shown.values()
    )


def test_the_checks_before_a_commit_are_those_of_the_makefile():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["make lint", "make types"]
    makefile = (ROOT / "Makefile").read_text()
    assert "\nlint: " in makefile and "\ntypes: " in makefile
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir():
        fields = yaml.safe_load(form.read_text())
        assert (
            fields["name"] and fields["description"] and all("label" in part["attributes"] for part in fields["body"])
        )


def test_the_contributors_example_of_a_divergence_runs():
    (example,) = re.findall(
        r"<!-- divergence -->\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL
    )
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(0.5, 0.5)\n" and len(example.splitlines()) < 30
